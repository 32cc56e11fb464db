// sparse_mlp from sm_80 on.
#include "base/cuda/launch.h"
#include "ops/sparse_mlp/mlp_pass.cuh"
#include "ops/sparse_mlp/sparse_mlp_cuda.h"

namespace tamis {
namespace {

template <DType kType>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kDotThreads, 2) sparse_mlp_gate(const MlpParams p) {
  mlp_gate<kType>(p);
}
template <DType kType>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kDotThreads, 2) sparse_mlp_up(const MlpParams p) {
  mlp_up<kType>(p);
}
template <DType kType>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kRowSumThreads, kRowSumBlocks)
    sparse_mlp_down(const DownParams p) {
  mlp_down<kType>(p);
}

template <DType kType, int kParts>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kDotThreads, 2) sparse_mlp_pass(const MlpParams p) {
  mlp_pass<kType, kParts>(p);
}
template <DType kType>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kDotThreads, 2) sparse_mlp_pass_sum(const MlpParams p) {
  mlp_pass_sum<kType>(p);
}

template <auto* kKernel, class Params>
Status start(dim3 grid, int32_t shared, const CudaDevice& device, void* stream,
             const Params& params) {
  return launch_wide<kKernel>("sparse_mlp", device, device.shared_per_block,
                              {.grid = grid,
                               .threads = kDotThreads,
                               .shared_bytes = static_cast<size_t>(shared),
                               .early = device.capability >= 90,
                               .stream = stream},
                              params);
}

template <DType kType>
Status run(const SparseMlpArgs& a, const MlpPlan& plan, int64_t first, void* workspace,
           const CudaDevice& device, void* stream) {
  static_assert(kDotThreads == kRowSumThreads, "one launcher");
  const MlpParams p = mlp_params(a, plan, first, workspace);
  const auto blocks = static_cast<uint32_t>(plan.blocks);
  if (plan.pass) {
    const auto pass = [&]<int kParts>() {
      return start<&sparse_mlp_pass<kType, kParts>>(dim3(blocks), plan.up_shared, device, stream,
                                                    p);
    };
    TAMIS_RETURN_IF_ERROR(a.d <= kPassColumns       ? pass.template operator()<1>()
                          : a.d <= 2 * kPassColumns ? pass.template operator()<2>()
                                                    : pass.template operator()<4>());
    return start<&sparse_mlp_pass_sum<kType>>(dim3(static_cast<uint32_t>(ceil_div(a.d, 32))),
                                              128 * kDotWarps, device, stream, p);
  }
  TAMIS_RETURN_IF_ERROR(
      start<&sparse_mlp_gate<kType>>(dim3(blocks), plan.gate_shared, device, stream, p));
  TAMIS_RETURN_IF_ERROR(
      start<&sparse_mlp_up<kType>>(dim3(blocks), plan.up_shared, device, stream, p));
  const DownParams sum{mlp_down_params(a, plan, first, workspace), p.total, p.listed, p.factors};
  return start<&sparse_mlp_down<kType>>(dim3(static_cast<uint32_t>(ceil_div(a.d, kRowSumColumns)),
                                             static_cast<uint32_t>(plan.splits)),
                                        plan.down_shared, device, stream, sum);
}

}  // namespace

Status sparse_mlp_cuda(const SparseMlpArgs& a, void* workspace, int64_t workspace_bytes,
                       const CudaDevice& device, void* stream) {
  MlpPlan plan;
  TAMIS_RETURN_IF_ERROR(plan_mlp(a, device, &plan));
  if (workspace_bytes < plan.workspace_bytes || reinterpret_cast<uintptr_t>(workspace) % 16 != 0) {
    return error(Code::invalid_argument,
                 "sparse_mlp: workspace: got %lld bytes, wanted %lld at a multiple of 16",
                 static_cast<long long>(workspace_bytes),
                 static_cast<long long>(plan.workspace_bytes));
  }
  if (a.d == 0) return {};
  for (int64_t first = 0; first < a.m; first += plan.tokens) {
    TAMIS_RETURN_IF_ERROR(a.dtype == DType::bf16
                              ? run<DType::bf16>(a, plan, first, workspace, device, stream)
                              : run<DType::f16>(a, plan, first, workspace, device, stream));
  }
  return {};
}

}  // namespace tamis
