// Declares every kernel of kernels.def.
#pragma once

#include "ops/spmm_grad/spmm_grad.h"

namespace tamis {
#define TAMIS_SPMM_GRAD(isa)                                                                   \
  void spmm_t_f32_##isa(const int32_t* columns, const float* values, int64_t count,            \
                        const float* dy, float* dx);                                           \
  void sddmm_f32_##isa(const int32_t* columns, int64_t count, const float* dy, const float* x, \
                       float* sums);
#include "ops/spmm_grad/kernels.def"
#undef TAMIS_SPMM_GRAD
}  // namespace tamis
