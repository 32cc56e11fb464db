// The t16 product for sm_90a: records by bulk copy.
#include "ops/spmm/kernels_cuda.h"
#include "ops/spmm/t16_launch.cuh"

namespace tamis {

Status spmm_t16_bf16_bf16_sm90(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                               const CudaDevice& device, void* stream) {
  return launch_spmm_t16<PackedFormat::t16, DType::bf16, true>(a, plan, device, stream);
}

Status spmm_t16_f16_f16_sm90(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                             const CudaDevice& device, void* stream) {
  return launch_spmm_t16<PackedFormat::t16, DType::f16, true>(a, plan, device, stream);
}

}  // namespace tamis
