// sparse_mlp: y[m,d] = sum_j z[m,j] * down[j,d], z[m,j] = a * (up[j] . x[m]), a = f(gate[j] .
// x[m]), over the neurons j that count for a token: those unless |a| < threshold[j]. A gated MLP
// whose rows of up and down are read only for the neurons that some token of a pass needs (CATS,
// arXiv:2404.08763; CHESS, arXiv:2409.01366).
#pragma once

#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "base/isa.h"
#include "base/status.h"
#include "ops/spmm/spmm.h"

namespace tamis {

// x [m, k] and y [m, d] have contiguous rows; gate and up are [n, k], down is [n, d], the usual
// [d, n] transposed, so that a neuron is one row of each; all of one dtype, f32, f16 or bf16. Dot
// products, a, z and y's sums are f32. A NaN counts, whatever the threshold.
struct SparseMlpArgs {
  DType dtype = DType::f32;
  int64_t m = 0, k = 0, n = 0, d = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* gate = nullptr;
  const void* up = nullptr;
  const void* down = nullptr;
  const float* threshold = nullptr;  // [n]
  Activation activation = Activation::silu;
  void* y = nullptr;
  int64_t y_stride = 0;
  int64_t* kept = nullptr;  // null, or gets how many of the m * n activations counted
};

// Neurons [begin, end) for up to kPassTokens tokens.
struct MlpPart {
  const SparseMlpArgs* args;
  const float* x;  // [tokens, k]
  int64_t tokens;
  int64_t begin, end;
  float* sum;     // [tokens, d], overwritten
  int64_t* kept;  // (token, neuron) pairs that counted, overwritten
};

using SparseMlpKernel = void (*)(const MlpPart&);

// One line of kernels.def.
struct SparseMlpRow {
  const char* name;  // sparse_mlp_<dtype>_<isa>
  DType dtype;
  IsaBits isa;
  SparseMlpKernel run;
};

// All kernels, best first within a dtype.
std::span<const SparseMlpRow> sparse_mlp_kernels();

// First row that fits; null if none. Pure.
const SparseMlpRow* choose_sparse_mlp(DType dtype, IsaBits isa);

// Checks, chooses for this host and runs on the pool. The result does not depend on the number of
// threads.
Status sparse_mlp(const SparseMlpArgs& args);

// The same with a given kernel, which this host must have: for tests and benchmarks.
Status sparse_mlp_with(const SparseMlpRow& row, const SparseMlpArgs& args);

// In double: y (f64) [m, d], and margin [m, n] = |a| - threshold[j] or null: a rounded a may fall
// on the other side where it is small.
Status sparse_mlp_reference(const SparseMlpArgs& args, double* y, double* margin);

}  // namespace tamis
