// The p24 product and its expansion: one source for all architectures.
#include "base/cuda/launch.h"
#include "base/with_constant.h"
#include "ops/spmm/kernels_cuda.h"
#include "ops/spmm/p24.cuh"
#include "ops/spmm/p24_expand.cuh"

namespace tamis {
namespace {

template <auto kKernel>
Status launch_kernel(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                     void* stream) {
  return launch_wide<kKernel>(
      "spmm", device, device.shared_per_block,
      {.grid = plan.cluster ? dim3(plan.blocks_n * plan.splits) : dim3(plan.blocks_n, plan.splits),
       .threads = static_cast<uint32_t>(32 * plan.block_warps),
       .shared_bytes = static_cast<size_t>(plan.shared_bytes),
       .early = device.capability >= 90 && a.w.settled,
       .stream = stream,
       .cluster = static_cast<uint32_t>(plan.cluster ? plan.splits : 1)},
      spmm_p24_params(a, plan));
}

template <DType kType>
Status launch_p24(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                  void* stream) {
  const bool triples = a.w.max_record_bytes == p24::kTripleBytes;
  return with_constant<1, 2, 3, 4, 5, 6, 8>(
      plan.token_tiles, [&]<int kTiles>(std::integral_constant<int, kTiles>) {
        return triples ? launch_kernel<&spmm_p24<P24Config<kType, kTiles, true>>>(a, plan, device,
                                                                                  stream)
                       : launch_kernel<&spmm_p24<P24Config<kType, kTiles, false>>>(a, plan, device,
                                                                                   stream);
      });
}

}  // namespace

Status spmm_p24_bf16_bf16_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                               const CudaDevice& device, void* stream) {
  return launch_p24<DType::bf16>(a, plan, device, stream);
}

Status spmm_p24_f16_f16_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                             const CudaDevice& device, void* stream) {
  return launch_p24<DType::f16>(a, plan, device, stream);
}

Status expand_p24_cuda(const PackedView& w, void* out, int64_t out_stride, const CudaDevice& device,
                       void* stream) {
  if (w.rows == 0 || w.cols == 0) return {};
  const ExpandP24Params p = expand_p24_params(w, out, out_stride);
  const CudaGrid grid{.grid = dim3(2 * static_cast<uint32_t>(t16::row_tiles(w.rows)) * p.panels),
                      .threads = 32 * kP24ExpandWarps,
                      .shared_bytes = static_cast<size_t>(p24_expand_bytes(p.panel_cols)),
                      .early = false,
                      .stream = stream};
  constexpr auto kMost = static_cast<int32_t>(p24_expand_bytes(p24::kMaxPanelCols));
  return w.max_record_bytes == p24::kTripleBytes
             ? launch_wide<&expand_p24<true>>("unpack", device, kMost, grid, p)
             : launch_wide<&expand_p24<false>>("unpack", device, kMost, grid, p);
}

}  // namespace tamis
