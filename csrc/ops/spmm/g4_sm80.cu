// The g4 product for sm_80 and, as PTX, everything later.
#include "ops/spmm/kernels_cuda.h"
#include "ops/spmm/t16_launch.cuh"

namespace tamis {

Status spmm_g4_u4_bf16_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                            const CudaDevice& device, void* stream) {
  return launch_spmm_t16<PackedFormat::g4, DType::bf16, false>(a, plan, device, stream);
}

Status spmm_g4_u4_f16_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                           const CudaDevice& device, void* stream) {
  return launch_spmm_t16<PackedFormat::g4, DType::f16, false>(a, plan, device, stream);
}

}  // namespace tamis
