// The bitmap product of 32-bit weights and its expansion: one source for all architectures.
#include "base/cuda/launch.h"
#include "base/with_constant.h"
#include "ops/spmm/bitmap_f32.cuh"
#include "ops/spmm/kernels_cuda.h"

namespace tamis {

Status spmm_bitmap_f32_f32_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                                const CudaDevice& device, void* stream) {
  const BitmapF32Params p = bitmap_f32_params(a, plan);
  const auto start = [&]<class Config>(Config) {
    return launch_wide<&spmm_bitmap_f32<Config>>(
        "spmm", device, device.shared_per_block,
        {.grid = dim3(plan.blocks_n),
         .threads = static_cast<uint32_t>(32 * plan.warps_k),
         .shared_bytes = static_cast<size_t>(plan.shared_bytes),
         .early = device.capability >= 90 && a.w.settled,
         .stream = stream},
        p);
  };
  return with_constant<1, 2, 4, 8, 16>(plan.tokens,
                                       [&]<int kTokens>(std::integral_constant<int, kTokens>) {
                                         return p.pairs ? start(BitmapF32Config<kTokens, true>{})
                                                        : start(BitmapF32Config<kTokens, false>{});
                                       });
}

Status expand_bitmap_f32_cuda(const PackedView& w, void* out, int64_t out_stride,
                              const CudaDevice& device, void* stream) {
  if (w.rows == 0 || w.cols == 0) return {};
  SpmmCudaPlan plan;
  TAMIS_RETURN_IF_ERROR(plan_spmm_bitmap_f32(w, 1, device, &plan));
  return launch_wide<&expand_bitmap_f32>("unpack", device, device.shared_per_block,
                                         {.grid = dim3(plan.blocks_n),
                                          .threads = static_cast<uint32_t>(32 * plan.warps_k),
                                          .shared_bytes = static_cast<size_t>(plan.shared_bytes),
                                          .early = false,
                                          .stream = stream},
                                         expand_bitmap_f32_params(w, plan, out, out_stride));
}

}  // namespace tamis
