// x as integer codes: x[m,k] ~ step * code, one step per token and kStepColumns columns, so that
// one outlier coarsens only its neighbours. A token with Inf or NaN there gets the step NaN.
//
// A sum of products of codes is scaled where the step of x or the scale of w changes. Chunks are
// the runs of columns in between; they may start inside a mask word when w has groups that do.
#pragma once

#include <cstdint>

#include "base/simd/element.h"
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

static_assert(kStepColumns % 64 == 0, "codes of one mask word share a step");

TAMIS_INLINE int64_t step_count(const MatrixView& w) {
  return ceil_div(w.cols, kStepColumns);
}

// At least as many as there are chunks in a row.
TAMIS_INLINE int64_t chunk_limit(const MatrixView& w) {
  const int64_t groups = w.group_size < w.cols ? ceil_div(w.cols, w.group_size) : 1;
  return step_count(w) + groups - 1;
}

// The chunks of columns from `first`, a multiple of kStepColumns, in order.
struct Chunks {
  int64_t cols, group_size, begin, end, group, group_end, index;

  TAMIS_INLINE explicit Chunks(const MatrixView& w, int64_t first = 0)
      : cols(w.cols),
        group_size(w.group_size),
        begin(0),
        end(0),
        group(0),
        group_end(w.group_size),
        index(0) {
    for (cut(); begin < first; next()) {
    }
  }
  TAMIS_INLINE bool more() const { return begin < cols; }
  TAMIS_INLINE int64_t step() const { return begin / kStepColumns; }
  TAMIS_INLINE void next() {
    begin = end;
    ++index;
    if (begin == group_end) {
      ++group;
      group_end += group_size;
    }
    cut();
  }

 private:
  TAMIS_INLINE void cut() {
    end = (begin / kStepColumns + 1) * kStepColumns;
    if (end > group_end) end = group_end;
    if (end > cols) end = cols;
  }
};

// Bits of mask word `word` that lie in columns [begin, end).
TAMIS_INLINE uint64_t bits_within(int64_t word, int64_t begin, int64_t end) {
  const int64_t first = begin - word * 64, last = end - word * 64;
  uint64_t bits = ~uint64_t{0};
  if (first > 0) bits <<= first;
  if (last < 64) bits &= ~uint64_t{0} >> (64 - last);
  return bits;
}

// The prepared x. A unit is a token, or a panel of `lanes` tokens side by side.
template <class Code>
struct XCodes {
  const Code* codes;      // [units, words * 64 * lanes], zero past k
  const int32_t* starts;  // [units, chunks, 16]: what a sum begins with
  const float* steps;     // [units, steps, lanes]
  int64_t codes_stride, starts_stride, steps_stride, bytes;

  TAMIS_INLINE XCodes(const MatrixView& w, const void* prepared, int64_t units, int64_t lanes)
      : codes_stride(mask_words(w.cols) * 64 * lanes),
        starts_stride(chunk_limit(w) * 16),
        steps_stride(step_count(w) * lanes) {
    const int64_t code_bytes = units * codes_stride * static_cast<int64_t>(sizeof(Code));
    const auto* at = static_cast<const char*>(prepared);
    codes = reinterpret_cast<const Code*>(at);
    starts = reinterpret_cast<const int32_t*>(at + code_bytes);
    steps = reinterpret_cast<const float*>(at + code_bytes + units * starts_stride * 4);
    bytes = code_bytes + units * (starts_stride + steps_stride) * 4;
  }
};

}  // namespace
}  // namespace tamis
