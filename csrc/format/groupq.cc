// groupq: pack, unpack, check.
#include "format/groupq.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/dtype.h"
#include "base/numeric.h"
#include "base/status.h"
#include "format/checks.h"
#include "format/encode.h"
#include "format/format.h"
#include "format/matrix.h"
#include "format/rows.h"
#include "format/words.h"

namespace tamis::groupq {
namespace {

constexpr int kMostColumns = 32;  // of a group

float highest_code(DType dtype) {
  return dtype == DType::u4 ? 15.0f : 255.0f;
}

void store_codes(const uint8_t* codes, DType dtype, int n, uint8_t* out) {
  if (dtype == DType::u8) {
    std::memcpy(out, codes, static_cast<size_t>(n));
    return;
  }
  for (int j = 0; j < n / 2; j += 8) {  // eight bytes at a time, whose codes do not reach the next
    uint64_t low, high;
    std::memcpy(&low, codes + j, 8);
    std::memcpy(&high, codes + j + n / 2, 8);
    low |= high << 4;
    std::memcpy(out + j, &low, 8);
  }
}

// Writes the n weights of stored group `i`.
void expand_group(const MatrixView& a, int64_t i, int n, float* out) {
  const float scale = f32_from_f16(a.group_scales[2 * i]);
  const float zero = f32_from_f16(a.group_scales[2 * i + 1]);
  const auto* codes = static_cast<const uint8_t*>(a.values) + i * value_elements(a.dtype, n);
  if (a.dtype == DType::u8) {
    for (int j = 0; j < n; ++j) out[j] = scale * (static_cast<float>(codes[j]) - zero);
    return;
  }
  for (int j = 0; j < n / 2; ++j) {
    out[j] = scale * (static_cast<float>(codes[j] & 15) - zero);
    out[j + n / 2] = scale * (static_cast<float>(codes[j] >> 4) - zero);
  }
}

template <class T>
int64_t write_mask(const KeptRows<T>& kept, int64_t row, int64_t group_size, uint64_t* words) {
  int64_t count = 0;
  for (int64_t g = 0; g < kept.cols / group_size; ++g) {
    const bool any = kept.any(row, g * group_size, group_size);
    if (g % 64 == 0) words[g / 64] = 0;
    words[g / 64] |= uint64_t{any} << (g % 64);
    count += any;
  }
  return count;
}

}  // namespace

Status pack_sizes(const DenseView& w, const PackSpec& spec, PackSizes* sizes) {
  std::atomic<int64_t> total{0};
  with_kept(w, [&](const auto& kept) {
    for_rows(w.rows, w.cols, [&](int64_t begin, int64_t end) {
      int64_t count = 0;
      for (int64_t r = begin; r < end; ++r) {
        for (int64_t c = 0; c < w.cols; c += spec.group_size) {
          count += kept.any(r, c, spec.group_size);
        }
      }
      total.fetch_add(count, std::memory_order_relaxed);
    });
  });
  *sizes = {.values = value_elements(spec.dtype, total * spec.group_size),
            .mask = w.rows * mask_words(w.cols / spec.group_size),
            .row_offsets = w.rows + 1,
            .group_scales = 2 * total};
  return {};
}

Status pack(const DenseView& w, const PackSpec& spec, const PackBuffers& out) {
  const auto n = static_cast<int>(spec.group_size);
  const int64_t words = mask_words(w.cols / n), bytes = value_elements(spec.dtype, n);
  const float highest = highest_code(spec.dtype);
  const EncodeGroups encode = host_encode_groups();
  FirstFailure failure;
  out.row_offsets[0] = 0;
  with_kept(w, [&](const auto& kept) {
    for_rows(w.rows, w.cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        out.row_offsets[r + 1] = write_mask(kept, r, n, out.mask + r * words);
      }
    });
    accumulate(out.row_offsets, w.rows);
    for_rows(w.rows, w.cols, [&](int64_t begin, int64_t end) {
      uint8_t codes[kEncodeGroups * kMostColumns];
      for (int64_t r = begin; r < end; ++r) {
        const GroupSource row{.w = kept.w + r * kept.stride,
                              .dtype = w.dtype,
                              .keep = kept.keep ? kept.keep + r * kept.cols : nullptr,
                              .n = n};
        int64_t i = out.row_offsets[r];
        for (int64_t v = 0; v < words; ++v) {
          int64_t at[64];
          int stored = 0;
          for_each_bit(out.mask[r * words + v], [&](int j) { at[stored++] = (64 * v + j) * n; });
          for (int first = 0; first < stored; first += kEncodeGroups) {
            const int count = std::min(stored - first, kEncodeGroups);
            if (!encode(row, at + first, count, highest, codes, out.group_scales + 2 * i)) {
              failure.report(r);
            }
            for (int g = 0; g < count; ++g, ++i) {
              store_codes(codes + g * n, spec.dtype, n,
                          static_cast<uint8_t*>(out.values) + i * bytes);
            }
          }
        }
      }
    });
  });
  if (!failure.any()) return {};
  return error(Code::invalid_argument,
               "pack: w: got a group of row %lld with Inf, NaN or a range over %g, wanted finite "
               "weights whose steps f16 holds",
               static_cast<long long>(failure.position()),
               static_cast<double>(highest * kLargestF16));
}

void unpack(const MatrixView& a, void* out, int64_t out_stride) {
  const auto n = static_cast<int>(a.group_size);
  const int64_t words = mask_words(a.cols / n);
  for_rows(a.rows, a.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = static_cast<float*>(out) + r * out_stride;
      std::memset(row, 0, static_cast<size_t>(a.cols) * sizeof(float));
      int64_t i = a.row_offsets[r];
      for (int64_t v = 0; v < words; ++v) {
        for_each_bit(a.mask[r * words + v],
                     [&](int j) { expand_group(a, i++, n, row + (64 * v + j) * n); });
      }
    }
  });
}

void unpack_keep(const MatrixView& a, uint8_t* keep) {
  const auto n = static_cast<size_t>(a.group_size);
  const int64_t groups = a.cols / a.group_size;
  for_rows(a.rows, a.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const uint64_t* words = a.mask + r * mask_words(groups);
      for (int64_t g = 0; g < groups; ++g) {
        std::memset(keep + r * a.cols + g * a.group_size, words[g / 64] >> (g % 64) & 1, n);
      }
    }
  });
}

Status check_sizes(const MatrixView& a, const PackSizes& sizes) {
  TAMIS_RETURN_IF_ERROR(
      check_length("mask", sizes.mask, a.rows * mask_words(a.cols / a.group_size)));
  TAMIS_RETURN_IF_ERROR(check_length("row_offsets", sizes.row_offsets, a.rows + 1));
  TAMIS_RETURN_IF_ERROR(check_length("col_indices", sizes.col_indices, 0));
  if (a.nnz % a.group_size != 0) {
    return error(Code::corrupt, "check: values: got %lld codes, wanted whole groups of %lld",
                 static_cast<long long>(a.nnz), static_cast<long long>(a.group_size));
  }
  return check_length("scales", sizes.group_scales, a.nnz / a.group_size * 2);
}

Status check_content(const MatrixView& a) {
  const int64_t stored = a.nnz / a.group_size, groups = a.cols / a.group_size;
  TAMIS_RETURN_IF_ERROR(check_offsets(a.row_offsets, a.rows, stored));
  const int64_t words = mask_words(groups);
  for (int64_t r = 0; r < a.rows; ++r) {
    const uint64_t* row = a.mask + r * words;
    TAMIS_RETURN_IF_ERROR(check_mask_tail(row, r, groups));
    int64_t bits = 0;
    for (int64_t v = 0; v < words; ++v) bits += popcount(row[v]);
    const int64_t wanted = a.row_offsets[r + 1] - a.row_offsets[r];
    if (bits != wanted) {
      return error(
          Code::corrupt, "check: mask: got %lld bits in row %lld, wanted %lld as row_offsets say",
          static_cast<long long>(bits), static_cast<long long>(r), static_cast<long long>(wanted));
    }
  }
  constexpr uint16_t kExponent = 0x7c00;  // all ones: Inf or NaN
  uint16_t largest = 0;                   // of all, so that the compiler vectorizes it
  for (int64_t i = 0; i < 2 * stored; ++i) {
    largest = std::max(largest, static_cast<uint16_t>(a.group_scales[i] & kExponent));
  }
  for (int64_t i = 0; largest == kExponent; ++i) {
    if ((a.group_scales[i] & kExponent) == kExponent) {
      return error(Code::corrupt,
                   "check: scales: got %g as the %s of group %lld, wanted a finite number",
                   static_cast<double>(f32_from_f16(a.group_scales[i])),
                   i % 2 ? "zero point" : "scale", static_cast<long long>(i / 2));
    }
  }
  return {};
}

}  // namespace tamis::groupq
