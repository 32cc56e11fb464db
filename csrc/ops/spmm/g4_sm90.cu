// The g4 product for sm_90a.
#include "ops/spmm/kernels_cuda.h"
#include "ops/spmm/t16_launch.cuh"

namespace tamis {

Status spmm_g4_u4_bf16_sm90(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                            const CudaDevice& device, void* stream) {
  return launch_spmm_t16<PackedFormat::g4, DType::bf16, true>(a, plan, device, stream);
}

Status spmm_g4_u4_f16_sm90(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                           const CudaDevice& device, void* stream) {
  return launch_spmm_t16<PackedFormat::g4, DType::f16, true>(a, plan, device, stream);
}

}  // namespace tamis
