// The gap product and its expansion: one source for all architectures.
#include "base/cuda/launch.h"
#include "base/with_constant.h"
#include "ops/spmm/gap.cuh"
#include "ops/spmm/gap_expand.cuh"
#include "ops/spmm/kernels_cuda.h"

namespace tamis {
namespace {

template <DType kType>
Status launch_gap(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                  void* stream) {
  const auto start = [&]<int kTokens>(std::integral_constant<int, kTokens>) {
    return launch_wide<&spmm_gap<GapConfig<kType, kTokens>>>(
        "spmm", device, device.shared_per_block,
        {.grid = dim3(plan.blocks_n, plan.splits),
         .threads = static_cast<uint32_t>(32 * plan.warps_k),
         .shared_bytes = static_cast<size_t>(plan.shared_bytes),
         .early = device.capability >= 90 && a.w.settled,
         .stream = stream},
        spmm_gap_params(a, plan));
  };
  return with_constant<1, 2, 4>(plan.tokens, start);
}

}  // namespace

Status spmm_gap_bf16_bf16_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                               const CudaDevice& device, void* stream) {
  return launch_gap<DType::bf16>(a, plan, device, stream);
}

Status spmm_gap_f16_f16_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                             const CudaDevice& device, void* stream) {
  return launch_gap<DType::f16>(a, plan, device, stream);
}

Status expand_gap_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream) {
  if (w.rows == 0 || w.cols == 0) return {};
  auto* on = static_cast<cudaStream_t>(stream);
  TAMIS_RETURN_IF_ERROR(fill_zeros("unpack", out, w.rows, w.cols, out_stride, stream));
  const ExpandGapParams p = expand_gap_params(w, out, out_stride);
  const auto grid = static_cast<uint32_t>(ceil_div(p.slices * p.parts, kGapExpandWarps));
  expand_gap<<<grid, 32 * kGapExpandWarps, 0, on>>>(p);
  return cuda_status("unpack", cudaGetLastError());
}

}  // namespace tamis
