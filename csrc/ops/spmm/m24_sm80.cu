// The m24 product for sm_80 and, as PTX, everything later: records by cp.async, expansion.
#include "ops/spmm/kernels_cuda.h"
#include "ops/spmm/m24_expand.cuh"
#include "ops/spmm/t16_launch.cuh"

namespace tamis {

Status spmm_m24_bf16_bf16_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                               const CudaDevice& device, void* stream) {
  return launch_spmm_t16<PackedFormat::m24, DType::bf16, false>(a, plan, device, stream);
}

Status spmm_m24_f16_f16_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                             const CudaDevice& device, void* stream) {
  return launch_spmm_t16<PackedFormat::m24, DType::f16, false>(a, plan, device, stream);
}

Status expand_m24_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream) {
  const ExpandT16Params p = expand_t16_params(w, out, out_stride);
  const int64_t tiles = int64_t{p.row_tiles} * p.col_tiles;
  if (tiles == 0) return {};
  const auto grid = static_cast<uint32_t>(ceil_div(tiles, kBlockWarps));
  expand_m24<<<grid, kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return cuda_status("unpack", cudaGetLastError());
}

}  // namespace tamis
