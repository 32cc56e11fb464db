// sparse_input: y[m,n] = sum_k x[m,k] * w[k,n] + bias[n] over the inputs that count, w dense and
// input-major. Input k of a token counts unless |x[m,k]| < threshold[k]; rows of w that no token of
// a pass needs are not read (TEAL, arXiv:2408.14690).
#pragma once

#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "base/isa.h"
#include "base/status.h"

namespace tamis {

// Tokens that share one pass over the weights. Meant for that few: the union of what several tokens
// need soon is all of w.
inline constexpr int64_t kPassTokens = 4;

// x [m, k], w [k, n] and y [m, n] have contiguous rows; bias [n] or null; all of one dtype, f32,
// f16 or bf16. Products accumulate in f32. A NaN counts, whatever the threshold.
struct SparseInputArgs {
  DType dtype = DType::f32;
  int64_t m = 0, n = 0, k = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* w = nullptr;
  const float* threshold = nullptr;  // [k]
  const void* bias = nullptr;
  void* y = nullptr;
  int64_t y_stride = 0;
  int64_t* kept = nullptr;  // null, or gets how many of the m * k inputs counted
};

// `count` rows of w that are added up, each times one factor per token.
struct WeightedRows {
  int64_t count = 0;
  const int32_t* ids = nullptr;    // [count], ascending
  const float* factors = nullptr;  // [count, tokens]
};

// sum[t, c] = sum_i factors[i, t] * w[ids[i], c] for columns [begin, end) of w, whose rows are
// `stride` elements apart; `sum` has rows of `sum_stride`, column 0 of w at its element 0. Adds to
// what is there.
struct RowSum {
  WeightedRows rows;
  int64_t tokens = 0;  // 1 .. kPassTokens
  const void* w = nullptr;
  int64_t stride = 0;
  float* sum = nullptr;
  int64_t sum_stride = 0;
  int64_t begin = 0, end = 0;
};

using RowSumKernel = void (*)(const RowSum&);

// One line of kernels.def.
struct SparseInputRow {
  const char* name;  // sparse_input_<dtype>_<isa>
  DType dtype;
  IsaBits isa;
  RowSumKernel run;
};

// All kernels, best first within a dtype.
std::span<const SparseInputRow> sparse_input_kernels();

// First row that fits; null if none. Pure.
const SparseInputRow* choose_sparse_input(DType dtype, IsaBits isa);

// Checks, chooses for this host and runs on the pool. The result does not depend on the number of
// threads.
Status sparse_input(const SparseInputArgs& args);

// The same with a given kernel, which this host must have: for tests and benchmarks.
Status sparse_input_with(const SparseInputRow& row, const SparseInputArgs& args);

// In double: y (f64) [m, n].
Status sparse_input_reference(const SparseInputArgs& args, double* y);

}  // namespace tamis
