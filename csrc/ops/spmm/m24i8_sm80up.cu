// The m24i8 product and the expansion of m24i8 and m24i4, for every level.
#include "ops/spmm/kernels_cuda.h"
#include "ops/spmm/m24i8_expand.cuh"
#include "ops/spmm/spmm_i8_launch.cuh"

namespace tamis {

Status spmm_m24i8_i8_bf16_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                               const CudaDevice& device, void* stream) {
  return launch_spmm_i8<PackedFormat::m24i8, DType::bf16>(a, plan, device, stream);
}

Status spmm_m24i8_i8_f16_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                              const CudaDevice& device, void* stream) {
  return launch_spmm_i8<PackedFormat::m24i8, DType::f16>(a, plan, device, stream);
}

Status expand_m24i8_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream) {
  const ExpandT16Params p = expand_t16_params(w, out, out_stride);
  const int64_t tiles = int64_t{p.row_tiles} * p.col_tiles;
  if (tiles == 0) return {};
  const auto grid = static_cast<uint32_t>(ceil_div(tiles, kBlockWarps));
  expand_m24i8<<<grid, kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return cuda_status("unpack", cudaGetLastError());
}

Status expand_m24i4_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream) {
  const ExpandT16Params p = expand_t16_params(w, out, out_stride);
  const int64_t tiles = int64_t{p.row_tiles} * p.col_tiles;
  if (tiles == 0) return {};
  const auto grid = static_cast<uint32_t>(ceil_div(tiles, kBlockWarps));
  expand_m24i4<<<grid, kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return cuda_status("unpack", cudaGetLastError());
}

}  // namespace tamis
