// The m24i4 product, for every level; its expansion lies beside that of m24i8.
#include "ops/spmm/kernels_cuda.h"
#include "ops/spmm/spmm_i8_launch.cuh"

namespace tamis {

Status spmm_m24i4_i8_bf16_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                               const CudaDevice& device, void* stream) {
  return launch_spmm_i8<PackedFormat::m24i4, DType::bf16>(a, plan, device, stream);
}

Status spmm_m24i4_i8_f16_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                              const CudaDevice& device, void* stream) {
  return launch_spmm_i8<PackedFormat::m24i4, DType::f16>(a, plan, device, stream);
}

}  // namespace tamis
