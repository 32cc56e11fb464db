// The m24 product for sm_90a: sparse tensor cores by warpgroups, or by warps where those are
// faster.
#include "base/cuda/tensor_map_host.h"
#include "ops/spmm/kernels_cuda.h"
#include "ops/spmm/layout_launch.cuh"
#include "ops/spmm/m24_many.cuh"
#include "ops/spmm/m24_wgmma.cuh"
#include "ops/spmm/t16_launch.cuh"

namespace tamis {
namespace {

template <class Config>
Status launch_layout(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                     void* stream) {
  return launch_blocks<Config, &spmm_m24_group<Config>>(
      a, plan, device, stream, plan.blocks_n * plan.splits, plan.splits, m24_group_params(a, plan));
}

template <class Config>
Status launch_many(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                   void* stream) {
  M24ManyParams params = m24_many_params(a, plan);
  TAMIS_RETURN_IF_ERROR(make_tensor_map("spmm", m24_many_records(a, plan), &params.record_boxes));
  if (params.x_aligned) {
    TAMIS_RETURN_IF_ERROR(make_tensor_map("spmm", m24_many_x(a, plan), &params.x_boxes));
  }
  if (const MatrixBoxes y = m24_many_y(a, plan); y.rows > 0) {
    TAMIS_RETURN_IF_ERROR(make_tensor_map("spmm", y, &params.y_boxes));
  }
  return launch_blocks<Config, &spmm_m24_many<Config>>(
      a, plan, device, stream, params.clusters * params.parts, params.parts, params);
}

template <DType kType>
Status launch_m24(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                  void* stream) {
  using Launch = Status (*)(const SpmmCudaArgs&, const SpmmCudaPlan&, const CudaDevice&, void*);
  static constexpr Launch kLaunches[] = {
#define TAMIS_M24_LAYOUT(...) &launch_layout<M24GroupConfig<kType, __VA_ARGS__>>,
#include "ops/spmm/m24_layouts.def"
#undef TAMIS_M24_LAYOUT
  };
  static constexpr Launch kManyLaunches[] = {
#define TAMIS_M24_MANY(...) &launch_many<M24ManyConfig<kType, __VA_ARGS__>>,
#include "ops/spmm/m24_many_layouts.def"
#undef TAMIS_M24_MANY
  };
  if (plan.many_layout >= 0) return kManyLaunches[plan.many_layout](a, plan, device, stream);
  if (plan.layout >= 0) return kLaunches[plan.layout](a, plan, device, stream);
  return launch_spmm_t16<PackedFormat::m24, kType, true>(a, plan, device, stream);
}

}  // namespace

Status spmm_m24_bf16_bf16_sm90(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                               const CudaDevice& device, void* stream) {
  return launch_m24<DType::bf16>(a, plan, device, stream);
}

Status spmm_m24_f16_f16_sm90(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                             const CudaDevice& device, void* stream) {
  return launch_m24<DType::f16>(a, plan, device, stream);
}

}  // namespace tamis
