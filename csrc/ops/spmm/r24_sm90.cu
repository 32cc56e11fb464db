// The r24 product for sm_90a, and its expansion.
#include "base/cuda/launch.h"
#include "base/cuda/tensor_map_host.h"
#include "ops/spmm/kernels_cuda.h"
#include "ops/spmm/r24.cuh"

namespace tamis {
namespace {

template <class Config>
Status launch_layout(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                     void* stream) {
  SpmmR24Params params = spmm_r24_params(a, plan);
  if (params.x_aligned) {
    TAMIS_RETURN_IF_ERROR(make_tensor_map("spmm", spmm_r24_x(a), &params.x_boxes));
  }
  const dim3 blocks(static_cast<uint32_t>(plan.splits), static_cast<uint32_t>(plan.blocks_n));
  return launch_wide<&spmm_r24<Config>>(
      "spmm", device, Config::kLayout.shared_bytes(),
      {.grid = blocks,
       .threads = Config::kThreads,
       .shared_bytes = static_cast<size_t>(plan.shared_bytes),
       .early = a.w.settled,
       .stream = stream,
       .cluster = plan.cluster ? static_cast<uint32_t>(plan.splits) : 1},
      params);
}

template <DType kType>
Status launch_r24(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                  void* stream) {
  using Launch = Status (*)(const SpmmCudaArgs&, const SpmmCudaPlan&, const CudaDevice&, void*);
  static constexpr Launch kLaunches[] = {
#define TAMIS_R24_LAYOUT(...) &launch_layout<R24Config<kType, __VA_ARGS__>>,
#include "ops/spmm/r24_layouts.def"
#undef TAMIS_R24_LAYOUT
  };
  return kLaunches[plan.layout](a, plan, device, stream);
}

}  // namespace

Status spmm_r24_bf16_bf16_sm90(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                               const CudaDevice& device, void* stream) {
  return launch_r24<DType::bf16>(a, plan, device, stream);
}

Status spmm_r24_f16_f16_sm90(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                             const CudaDevice& device, void* stream) {
  return launch_r24<DType::f16>(a, plan, device, stream);
}

Status expand_r24_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream) {
  if (w.rows == 0 || w.cols == 0) return {};
  const ExpandR24Params p = expand_r24_params(w, out, out_stride);
  return launch("unpack",
                {.grid = dim3(static_cast<uint32_t>(ceil_div(p.tiles, kR24ExpandWarps))),
                 .threads = 32 * kR24ExpandWarps,
                 .shared_bytes = static_cast<size_t>(kR24ExpandWarps * r24::kTileBytes),
                 .early = false,
                 .stream = stream},
                &expand_r24, p);
}

}  // namespace tamis
