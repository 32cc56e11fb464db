// The d24 product and its expansion, for sm_90 alone: x of a panel fills its shared memory.
#include "base/cuda/launch.h"
#include "base/with_constant.h"
#include "ops/spmm/d24.cuh"
#include "ops/spmm/d24_expand.cuh"
#include "ops/spmm/kernels_cuda.h"

namespace tamis {
namespace {

template <DType kType>
Status launch_d24(const SpmmCudaArgs& a, const SpmmT16Plan& plan, const CudaDevice& device,
                  void* stream) {
  return with_constant<5, 6, 8>(plan.token_tiles,
                                [&]<int kTiles>(std::integral_constant<int, kTiles>) {
                                  return launch_wide<&spmm_d24<D24Config<kType, kTiles>>>(
                                      "spmm", device, device.shared_per_block,
                                      {.grid = dim3(plan.blocks_n, plan.splits),
                                       .threads = static_cast<uint32_t>(32 * plan.block_warps),
                                       .shared_bytes = static_cast<size_t>(plan.shared_bytes),
                                       .early = a.w.settled,
                                       .stream = stream},
                                      spmm_d24_params(a, plan));
                                });
}

}  // namespace

Status spmm_d24_bf16_bf16_sm90(const SpmmCudaArgs& a, const SpmmT16Plan& plan,
                               const CudaDevice& device, void* stream) {
  return launch_d24<DType::bf16>(a, plan, device, stream);
}

Status spmm_d24_f16_f16_sm90(const SpmmCudaArgs& a, const SpmmT16Plan& plan,
                             const CudaDevice& device, void* stream) {
  return launch_d24<DType::f16>(a, plan, device, stream);
}

Status expand_d24_cuda(const T16View& w, void* out, int64_t out_stride, const CudaDevice& device,
                       void* stream) {
  if (w.rows == 0 || w.cols == 0) return {};
  const ExpandP24Params p = expand_d24_params(w, out, out_stride);
  constexpr auto kMost = static_cast<int32_t>(p24_expand_bytes(d24::kMaxPanelCols));
  return launch_wide<&expand_d24>(
      "unpack", device, kMost,
      {.grid = dim3(4 * static_cast<uint32_t>(d24::row_pairs(w.rows)) * p.panels),
       .threads = 32 * kP24ExpandWarps,
       .shared_bytes = static_cast<size_t>(p24_expand_bytes(p.panel_cols)),
       .early = false,
       .stream = stream},
      p);
}

}  // namespace tamis
