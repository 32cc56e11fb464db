// The bitmap product for sm_90a: tensor cores by warpgroups.
#include "ops/spmm/bitmap_wgmma.cuh"
#include "ops/spmm/kernels_cuda.h"
#include "ops/spmm/layout_launch.cuh"

namespace tamis {
namespace {

template <class Config>
Status launch_layout(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                     void* stream) {
  return launch_blocks<Config, &spmm_bitmap_group<Config>>(a, plan, device, stream,
                                                           plan.blocks_n * plan.splits, plan.splits,
                                                           bitmap_group_params(a, plan));
}

template <DType kType>
Status launch_bitmap(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                     void* stream) {
  using Launch = Status (*)(const SpmmCudaArgs&, const SpmmCudaPlan&, const CudaDevice&, void*);
  static constexpr Launch kLaunches[] = {
#define TAMIS_BITMAP_LAYOUT(...) &launch_layout<BitmapGroupConfig<kType, __VA_ARGS__>>,
#include "ops/spmm/bitmap_layouts.def"
#undef TAMIS_BITMAP_LAYOUT
  };
  return kLaunches[plan.layout](a, plan, device, stream);
}

}  // namespace

Status spmm_bitmap_bf16_bf16_sm90(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                                  const CudaDevice& device, void* stream) {
  return launch_bitmap<DType::bf16>(a, plan, device, stream);
}

Status spmm_bitmap_f16_f16_sm90(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                                const CudaDevice& device, void* stream) {
  return launch_bitmap<DType::f16>(a, plan, device, stream);
}

}  // namespace tamis
