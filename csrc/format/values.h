// How weights become stored values and back: float bit patterns are copied, i8 is
// code = round_to_even(w / scale) in [-127, 127], w = scale * code.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "format/encode.h"
#include "format/format.h"
#include "format/words.h"

namespace tamis {

// Fills scales [rows, scale_groups]: absmax of the kept weights of a group / code_limit, or 0 when
// they are all zero. Fails on a kept Inf or NaN.
Status write_scales(const DenseView& w, const PackSpec& spec, float* scales);

template <class T>
struct CopyValues {
  using Stored = T;
  KeptRows<T> kept;

  // n stored values for columns [col, col + n).
  const T* chunk(int64_t row, int64_t col, int /*n*/, T* /*scratch*/) const {
    return kept.w + row * kept.stride + col;
  }
};

template <class T>
struct QuantizeValues {
  using Stored = int8_t;
  KeptRows<T> kept;
  const float* scales;
  int64_t group, groups;
  DType dtype;
  Encode encode;

  // Codes of weights that are not kept are arbitrary, and never stored.
  const int8_t* chunk(int64_t row, int64_t col, int n, int8_t* scratch) const {
    const T* source = kept.w + row * kept.stride + col;
    const float* row_scales = scales + row * groups;
    for (int begin = 0; begin < n;) {
      const int64_t g = (col + begin) / group;
      const int end = static_cast<int>(std::min<int64_t>(n, (g + 1) * group - col));
      // 0 / 0 would be NaN; with the divisor 1 the codes of an all-zero group are 0.
      const float divisor = row_scales[g] == 0.0f ? 1.0f : row_scales[g];
      encode(source + begin, dtype, end - begin, divisor, scratch + begin);
      begin = end;
    }
    return scratch;
  }
};

// Calls fn(source) with the value source for this pair of dtypes.
template <class Fn>
auto with_source(const DenseView& w, const PackSpec& spec, const float* scales, const Fn& fn) {
  return with_kept(w, [&]<class T>(const KeptRows<T>& kept) {
    if (spec.dtype != DType::i8) return fn(CopyValues<T>{kept});
    const int64_t group = group_columns(w.cols, spec.group_size);
    const int64_t groups = scale_groups(w.cols, spec.group_size);
    return fn(QuantizeValues<T>{kept, scales, group, groups, w.dtype, host_encode()});
  });
}

// Stores the values of the set bits of `word`, in order, and returns their count. Few are visited
// one by one; many are compacted without a branch, into a local buffer, as writing `out` directly
// would spill one element past its end.
template <class Source>
int compact_word(const Source& source, int64_t row, int64_t col, int n, uint64_t word,
                 typename Source::Stored* out) {
  using T = typename Source::Stored;
  T scratch[64], staged[64];
  const T* values = source.chunk(row, col, n, scratch);
  constexpr int kFew = 20;  // a visit costs three times a column
  if (const int few = popcount(word); few <= kFew) {
    for_each_bit(word, [&](int j) { *out++ = values[j]; });
    return few;
  }
  unsigned count = 0;
  const auto compact = [&](int columns) {
    for (int j = 0; j < columns; ++j) {
      staged[count] = values[j];  // count <= j
      count += (word >> j) & 1;
    }
  };
  n == 64 ? compact(64) : compact(n);
  std::memcpy(out, staged, count * sizeof(T));
  return static_cast<int>(count);
}

// Stores the kept values of one row whose mask words are known; returns their count.
template <class Source>
int64_t compact_row(const Source& source, int64_t row, const uint64_t* words,
                    typename Source::Stored* out) {
  const int64_t cols = source.kept.cols;
  int64_t count = 0;
  for (int64_t w = 0; w < mask_words(cols); ++w) {
    if (words[w] == 0) continue;
    count += compact_word(source, row, 64 * w, word_columns(cols, w), words[w], out + count);
  }
  return count;
}

// Calls fn(stored, dense): typed pointers for unpacking; i8 unpacks to f32.
template <class Fn>
void with_stored(const MatrixView& a, void* out, const Fn& fn) {
  switch (size_of(a.dtype)) {
    case 4:
      return fn(static_cast<const uint32_t*>(a.values), static_cast<uint32_t*>(out));
    case 2:
      return fn(static_cast<const uint16_t*>(a.values), static_cast<uint16_t*>(out));
    default:
      return fn(static_cast<const int8_t*>(a.values), static_cast<float*>(out));
  }
}

// Scatters the values of one row to its set bits, zeros elsewhere.
template <class Stored, class Dense>
void expand_row(const uint64_t* words, int64_t cols, const Stored* values, Dense* out) {
  std::memset(out, 0, static_cast<size_t>(cols) * sizeof(Dense));
  for (int64_t w = 0; w < mask_words(cols); ++w) {
    for_each_bit(words[w], [&](int j) { out[64 * w + j] = static_cast<Dense>(*values++); });
  }
}

// Applies the scales of one row to unpacked i8 codes; float formats have none.
template <class Dense>
void scale_row(const MatrixView& a, int64_t row, Dense* out) {
  if (a.dtype != DType::i8) return;
  const int64_t group = group_columns(a.cols, a.group_size);
  const float* scales = a.scales + row * scale_groups(a.cols, a.group_size);
  for (int64_t begin = 0, g = 0; begin < a.cols; begin += group, ++g) {
    const int64_t end = std::min(a.cols, begin + group);
    for (int64_t j = begin; j < end; ++j) out[j] *= scales[g];
  }
}

}  // namespace tamis
