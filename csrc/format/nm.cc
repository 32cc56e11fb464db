// nm: pack, unpack, check, and the import of NVIDIA's 2:4 metadata.
#include "format/nm.h"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/numeric.h"
#include "base/status.h"
#include "format/checks.h"
#include "format/format.h"
#include "format/matrix.h"
#include "format/rows.h"
#include "format/values.h"
#include "format/words.h"

namespace tamis::nm {
namespace {

struct Pattern {
  int keep, of;
};

int64_t row_values(int64_t cols, Pattern p) {
  return cols / p.of * p.keep;
}

// First group of the row without exactly p.keep bits, or -1.
int64_t first_bad_group(const uint64_t* words, int64_t cols, Pattern p) {
  int64_t begin = 0;  // columns already known to be right
  if (p.of > 1 && 64 % p.of == 0) {
    // Fields of one word hold whole groups, so one comparison checks 64 columns.
    const uint64_t each = p.of == 32 ? 0x100000001u : ~uint64_t{0} / ((uint64_t{1} << p.of) - 1);
    const uint64_t wanted = each * static_cast<uint64_t>(p.keep);
    while (begin + 64 <= cols && field_counts(words[begin / 64], p.of) == wanted) begin += 64;
  }
  for (; begin < cols; begin += p.of) {
    if (popcount(bits_at(words, begin, p.of)) != p.keep) return begin / p.of;
  }
  return -1;
}

// Sets the lowest clear bits of groups with fewer than p.keep, then returns what
// first_bad_group would: a group with too many bits, or -1.
int64_t fill_groups(uint64_t* words, int64_t cols, Pattern p) {
  int64_t bad;
  while ((bad = first_bad_group(words, cols, p)) >= 0) {
    const uint64_t bits = bits_at(words, bad * p.of, p.of);
    const int missing = p.keep - popcount(bits);
    if (missing < 0) return bad;
    uint64_t clear = ~bits;
    for (int i = 0; i < missing; ++i, clear &= clear - 1) {
      const int64_t column = bad * p.of + std::countr_zero(clear);
      words[column / 64] |= uint64_t{1} << (column % 64);
    }
  }
  return -1;
}

Status bad_group(const char* where, const uint64_t* words, int64_t row, int64_t group, Pattern p) {
  return error(where[0] == 'p' ? Code::invalid_argument : Code::corrupt,
               "%s: got %d kept weights in row %lld, columns %lld to %lld, wanted %d of every %d",
               where, popcount(bits_at(words, group * p.of, p.of)), static_cast<long long>(row),
               static_cast<long long>(group * p.of), static_cast<long long>((group + 1) * p.of - 1),
               p.keep, p.of);
}

}  // namespace

Status pack_sizes(const DenseView& w, const PackSpec& spec, PackSizes* sizes) {
  *sizes = {.values = w.rows * row_values(w.cols, {spec.keep, spec.of}),
            .mask = w.rows * mask_words(w.cols)};
  return {};
}

Status pack(const DenseView& w, const PackSpec& spec, const PackBuffers& out) {
  const Pattern pattern{spec.keep, spec.of};
  const int64_t words = mask_words(w.cols);
  FirstFailure failure;
  with_kept(w, [&](const auto& kept) {
    for_rows(w.rows, w.cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        uint64_t* row = out.mask + r * words;
        write_mask_row(kept, r, row);
        const int64_t bad = w.keep == nullptr ? fill_groups(row, w.cols, pattern)
                                              : first_bad_group(row, w.cols, pattern);
        if (bad >= 0) return failure.report(r * (w.cols / pattern.of) + bad);
      }
    });
  });
  if (failure.any()) {
    const int64_t row = failure.position() / (w.cols / pattern.of);
    return bad_group(w.keep == nullptr ? "pack: w" : "pack: keep", out.mask + row * words, row,
                     failure.position() % (w.cols / pattern.of), pattern);
  }
  with_source(w, spec, out.scales, [&]<class Source>(const Source& source) {
    auto* values = static_cast<typename Source::Stored*>(out.values);
    for_rows(w.rows, w.cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        compact_row(source, r, out.mask + r * words, values + r * row_values(w.cols, pattern));
      }
    });
  });
  return {};
}

void unpack(const MatrixView& a, void* out, int64_t out_stride) {
  const int64_t words = mask_words(a.cols);
  const int64_t per_row = row_values(a.cols, {a.keep, a.of});
  with_stored(a, out, [&](const auto* values, auto* dense) {
    for_rows(a.rows, a.cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        expand_row(a.mask + r * words, a.cols, values + r * per_row, dense + r * out_stride);
        scale_row(a, r, dense + r * out_stride);
      }
    });
  });
}

void unpack_keep(const MatrixView& a, uint8_t* keep) {
  for_rows(a.rows, a.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      expand_mask_row(a.mask + r * mask_words(a.cols), a.cols, keep + r * a.cols);
    }
  });
}

Status check_sizes(const MatrixView& a, const PackSizes& sizes) {
  TAMIS_RETURN_IF_ERROR(check_length("values", a.nnz, a.rows * row_values(a.cols, {a.keep, a.of})));
  TAMIS_RETURN_IF_ERROR(check_length("mask", sizes.mask, a.rows * mask_words(a.cols)));
  TAMIS_RETURN_IF_ERROR(check_length("row_offsets", sizes.row_offsets, 0));
  return check_length("col_indices", sizes.col_indices, 0);
}

Status check_content(const MatrixView& a) {
  const int64_t words = mask_words(a.cols);
  if (words == 0) return {};  // a row count without columns promises nothing to read
  for (int64_t r = 0; r < a.rows; ++r) {
    const uint64_t* row = a.mask + r * words;
    TAMIS_RETURN_IF_ERROR(check_mask_tail(row, r, a.cols));
    const int64_t bad = first_bad_group(row, a.cols, {a.keep, a.of});
    if (bad >= 0) return bad_group("check: mask", row, r, bad, {a.keep, a.of});
  }
  return {};
}

}  // namespace tamis::nm

namespace tamis {

Status import_nvidia_24(const uint32_t* meta, int64_t rows, int64_t cols, uint64_t* mask) {
  if (rows < 0 || rows > kMaxExtent || cols < 0 || cols > kMaxExtent || cols % 4 != 0) {
    return error(Code::invalid_argument,
                 "import_nvidia_24: rows, cols: got %lld x %lld, wanted 0 to %lld and columns in "
                 "groups of 4",
                 static_cast<long long>(rows), static_cast<long long>(cols),
                 static_cast<long long>(kMaxExtent));
  }
  const int64_t words = mask_words(cols), groups = cols / 4;
  for (int64_t r = 0; r < rows; ++r) {
    std::memset(mask + r * words, 0, static_cast<size_t>(words) * sizeof *mask);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = r * groups + g;
      const uint32_t ids = (meta[at / 8] >> (4 * (at % 8))) & 15u;
      const uint32_t first = ids & 3u, second = ids >> 2;
      if (first >= second) {
        return error(Code::corrupt,
                     "import_nvidia_24: meta[%lld]: got column ids %u and %u in group %lld, wanted "
                     "ascending ids",
                     static_cast<long long>(at / 8), first, second, static_cast<long long>(at));
      }
      const uint64_t pair = (uint64_t{1} << first) | (uint64_t{1} << second);
      mask[r * words + g / 16] |= pair << (4 * (g % 16));
    }
  }
  return {};
}

}  // namespace tamis
