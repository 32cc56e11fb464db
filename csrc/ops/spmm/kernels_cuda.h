// Declares every kernel of kernels_cuda.def.
#pragma once

#include "ops/spmm/spmm_cuda.h"

namespace tamis {
#define TAMIS_SPMM_CUDA(format, w, x, capability, exact)                                      \
  Status spmm_##format##_##w##_##x##_sm##capability(const SpmmCudaArgs&, const SpmmCudaPlan&, \
                                                    const CudaDevice&, void* stream);
#include "ops/spmm/kernels_cuda.def"
#undef TAMIS_SPMM_CUDA
}  // namespace tamis
