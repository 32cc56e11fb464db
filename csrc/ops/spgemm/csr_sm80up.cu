// spgemm from sm_80 on.
#include "base/cuda/launch.h"
#include "ops/spgemm/spgemm.cuh"
#include "ops/spgemm/spgemm_cuda.h"

namespace tamis {
namespace {

TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32, 1) spgemm_start_kernel(const SpgemmParams p) {
  spgemm_start(p);
}
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kSpgemmThreads, 4) spgemm_bound_kernel(const SpgemmParams p) {
  spgemm_bound(p);
}
template <bool kFill>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kSpgemmThreads, 4) spgemm_warps_kernel(const SpgemmParams p) {
  spgemm_warps<kFill>(p);
}
template <bool kFill>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kSpgemmThreads, 3)
    spgemm_blocks_kernel(const SpgemmParams p) {
  spgemm_blocks<kFill>(p, gridDim.x);
}
template <bool kFill>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kSpgemmThreads, 2) spgemm_dense_kernel(const SpgemmParams p) {
  spgemm_dense<kFill>(p);
}

template <bool kFill>
Status run(const SpgemmParams& p, const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(
      (set_once<&spgemm_blocks_kernel<kFill>, kMostShared>("spgemm", device, kSpgemmBlockShared)));
  const auto start = [&](dim3 grid, uint32_t threads, int32_t shared, auto* kernel) {
    return launch("spgemm",
                  {.grid = grid,
                   .threads = threads,
                   .shared_bytes = static_cast<size_t>(shared),
                   .early = false,
                   .stream = stream},
                  kernel, p);
  };
  const dim3 rows(static_cast<uint32_t>(ceil_div(p.rows, kSpgemmWarps)));
  TAMIS_RETURN_IF_ERROR(start(dim3(1), 32, 0, &spgemm_start_kernel));
  TAMIS_RETURN_IF_ERROR(start(rows, kSpgemmThreads, 0, &spgemm_bound_kernel));
  TAMIS_RETURN_IF_ERROR(
      start(rows, kSpgemmThreads, kSpgemmWarpShared, &spgemm_warps_kernel<kFill>));
  if (p.columns > kWarpColumns) {
    TAMIS_RETURN_IF_ERROR(start(dim3(static_cast<uint32_t>(2 * device.sms)), kSpgemmThreads,
                                kSpgemmBlockShared, &spgemm_blocks_kernel<kFill>));
  }
  if (p.dense_blocks == 0) return {};
  return start(dim3(static_cast<uint32_t>(p.dense_blocks)), kSpgemmThreads, kSpgemmDenseShared,
               &spgemm_dense_kernel<kFill>);
}

Status check_workspace(const SpgemmArgs& a, const void* workspace, int64_t got,
                       const CudaDevice& device) {
  int64_t wanted = 0;
  TAMIS_RETURN_IF_ERROR(spgemm_workspace(a, device, &wanted));
  if (got >= wanted && reinterpret_cast<uintptr_t>(workspace) % 16 == 0) return {};
  return error(Code::invalid_argument,
               "spgemm: workspace: got %lld bytes, wanted %lld at a multiple of 16",
               static_cast<long long>(got), static_cast<long long>(wanted));
}

}  // namespace

Status spgemm_count_cuda(const SpgemmArgs& a, int64_t* counts, void* workspace,
                         int64_t workspace_bytes, const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(check_workspace(a, workspace, workspace_bytes, device));
  if (a.a.rows == 0) return {};
  SpgemmParams p = spgemm_params(a, workspace, device);
  p.counts = counts;
  return run<false>(p, device, stream);
}

Status spgemm_fill_cuda(const SpgemmArgs& a, const int64_t* row_offsets, int32_t* col_indices,
                        float* values, void* workspace, int64_t workspace_bytes,
                        const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(check_workspace(a, workspace, workspace_bytes, device));
  if (a.a.rows == 0) return {};
  SpgemmParams p = spgemm_params(a, workspace, device);
  p.row_offsets = row_offsets;
  p.col_indices = col_indices;
  p.values = values;
  return run<true>(p, device, stream);
}

}  // namespace tamis
