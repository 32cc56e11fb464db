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

// The prepared x, tokens side by side, so that a kernel has one pointer to each array.
template <class Code>
struct XCodes {
  Code* codes;      // [words, tokens, 64], zero past k
  int32_t* starts;  // [chunks, tokens, 16]: what a sum begins with
  float* steps;     // [steps, tokens]
  int64_t tokens, bytes;

  TAMIS_INLINE XCodes(const SpmmArgs& a, void* prepared) : tokens(a.m) {
    const int64_t code_bytes = mask_words(a.w.cols) * a.m * 64 * static_cast<int64_t>(sizeof(Code));
    const int64_t start_bytes = chunk_limit(a.w) * a.m * 64;
    auto* at = static_cast<char*>(prepared);
    codes = reinterpret_cast<Code*>(at);
    starts = reinterpret_cast<int32_t*>(at + code_bytes);
    steps = reinterpret_cast<float*>(at + code_bytes + start_bytes);
    bytes = code_bytes + start_bytes + step_count(a.w) * a.m * 4;
  }
  TAMIS_INLINE explicit XCodes(const SpmmArgs& a) : XCodes(a, const_cast<void*>(a.prepared)) {}
};

}  // namespace
}  // namespace tamis
