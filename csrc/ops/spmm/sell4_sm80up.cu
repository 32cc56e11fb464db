// The sell4 product and its expansion for sm_80 and everything later.
#include "base/cuda/launch.h"
#include "base/with_constant.h"
#include "ops/spmm/kernels_cuda.h"
#include "ops/spmm/sell4.cuh"

namespace tamis {
namespace {

template <DType kType>
Status launch_spmm_sell4(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                         void* stream) {
  const auto start = [&]<int kTokens>(std::integral_constant<int, kTokens>) {
    return launch_wide<&spmm_sell4<Sell4Config<kType, kTokens>>>(
        "spmm", device, device.shared_per_block,
        {.grid = dim3(plan.blocks_n * plan.splits),
         .threads = static_cast<uint32_t>(32 * plan.warps_k),
         .shared_bytes = static_cast<size_t>(plan.shared_bytes),
         .early = device.capability >= 90 && a.w.settled,
         .stream = stream,
         .cluster = static_cast<uint32_t>(plan.splits)},
        spmm_sell4_params(a, plan));
  };
  return with_constant<1, 2, 4, 8>(plan.tokens, start);
}

}  // namespace

Status spmm_sell4_u4_bf16_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                               const CudaDevice& device, void* stream) {
  return launch_spmm_sell4<DType::bf16>(a, plan, device, stream);
}

Status spmm_sell4_u4_f16_sm80(const SpmmCudaArgs& a, const SpmmCudaPlan& plan,
                              const CudaDevice& device, void* stream) {
  return launch_spmm_sell4<DType::f16>(a, plan, device, stream);
}

Status expand_sell4_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream) {
  if (w.rows == 0 || w.cols == 0) return {};
  auto* on = static_cast<cudaStream_t>(stream);
  TAMIS_RETURN_IF_ERROR(fill_zeros("unpack", out, w.rows, w.cols, out_stride, stream));
  const auto grid = static_cast<uint32_t>(sell4::slices(w.rows));
  expand_sell4<<<grid, 32 * kSell4ExpandWarps, 0, on>>>(expand_sell4_params(w, out, out_stride));
  return cuda_status("unpack", cudaGetLastError());
}

}  // namespace tamis
