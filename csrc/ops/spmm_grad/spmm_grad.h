// spmm_grad: the two gradients of y[m,n] = sum_k x[m,k] * w[n,k] for a compressed w.
//   spmm_t  dx[m,k] = sum_n dy[m,n] * w[n,k]
//   sddmm   dw[i] = sum_m dy[m, row of i] * x[m, column of i], for each stored place i of w
// Neither makes a dense [n, k].
#pragma once

#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "base/isa.h"
#include "base/status.h"
#include "format/matrix.h"

namespace tamis {

// w: bitmap, nm or csr of f32, f16 or bf16. dy [m, n], x and dx [m, k] have contiguous rows and one
// dtype of these; dw [nnz] has w's, in storage order. Sums are f32. What is written overlaps
// nothing that is read.
struct SpmmTArgs {
  MatrixView w;
  DType dtype = DType::f32;
  int64_t m = 0;
  const void* dy = nullptr;
  int64_t dy_stride = 0;
  void* dx = nullptr;
  int64_t dx_stride = 0;
};
struct SddmmArgs {
  MatrixView w;  // values are not read
  DType dtype = DType::f32;
  int64_t m = 0;
  const void* dy = nullptr;
  int64_t dy_stride = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;
  void* dw = nullptr;
};

// Tokens that the kernels take at a time, side by side in f32: of 4096 columns they are 1 MB, which
// stays in a core's L2 cache.
inline constexpr int64_t kGradTokens = 64;

// One row of w: dx[columns[i], :] += values[i] * dy[:]. dy [kGradTokens], dx [k, kGradTokens].
using SpmmTKernel = void (*)(const int32_t* columns, const float* values, int64_t count,
                             const float* dy, float* dx);
// The same row: sums[i] += sum over tokens of dy[:] * x[columns[i], :]. x [k, kGradTokens].
using SddmmKernel = void (*)(const int32_t* columns, int64_t count, const float* dy, const float* x,
                             float* sums);

// One line of kernels.def.
struct SpmmGradRow {
  const char* name;  // spmm_grad_f32_<isa>: operands are widened while they are turned
  IsaBits isa;
  SpmmTKernel spmm_t;
  SddmmKernel sddmm;
};

// All kernels, best first.
std::span<const SpmmGradRow> spmm_grad_kernels();

// First row that fits; there is always one. Pure.
const SpmmGradRow& choose_spmm_grad(IsaBits isa);

// Check, choose for this host and run on the pool. Results do not depend on the number of threads.
Status spmm_t(const SpmmTArgs& args);
Status sddmm(const SddmmArgs& args);

// The same with a given kernel, which this host must have: for tests and benchmarks.
Status spmm_t_with(const SpmmGradRow& row, const SpmmTArgs& args);
Status sddmm_with(const SpmmGradRow& row, const SddmmArgs& args);

// In double: dx [m, k], dw [nnz].
Status spmm_t_reference(const SpmmTArgs& args, double* dx);
Status sddmm_reference(const SddmmArgs& args, double* dw);

// What is wrong with the arguments, as every backend asks it.
Status check_spmm_t(const SpmmTArgs& args);
Status check_sddmm(const SddmmArgs& args);

}  // namespace tamis
