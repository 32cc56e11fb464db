// sparse_input from sm_80 on.
#include "base/cuda/launch.h"
#include "ops/sparse_input/sparse_input.cuh"
#include "ops/sparse_input/sparse_input_cuda.h"

namespace tamis {
namespace {

template <DType kType>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kRowSumThreads, kRowSumBlocks)
    sparse_input_kernel(const SparseInputParams p) {
  sparse_input<kType>(p);
}

template <DType kType>
Status run(const SparseInputParams& p, const CudaDevice& device, void* stream) {
  const auto tiles = static_cast<uint32_t>(ceil_div(p.sum.columns, kRowSumColumns));
  return launch_wide<&sparse_input_kernel<kType>>(
      "sparse_input", device, std::min(kInputShared, device.shared_per_block),
      {.grid = dim3(tiles, static_cast<uint32_t>(p.sum.splits)),
       .threads = kRowSumThreads,
       .shared_bytes = static_cast<size_t>(input_shared(p.groups, p.sum.m)),
       .early = device.capability >= 90,
       .stream = stream},
      p);
}

}  // namespace

Status sparse_input_cuda(const SparseInputArgs& a, void* workspace, int64_t workspace_bytes,
                         const CudaDevice& device, void* stream) {
  int64_t bytes = 0;
  TAMIS_RETURN_IF_ERROR(sparse_input_workspace(a, device, &bytes));
  if (workspace_bytes < bytes || reinterpret_cast<uintptr_t>(workspace) % 16 != 0) {
    return error(Code::invalid_argument,
                 "sparse_input: workspace: got %lld bytes, wanted %lld at a multiple of 16",
                 static_cast<long long>(workspace_bytes), static_cast<long long>(bytes));
  }
  if (a.n == 0) return {};
  for (int64_t first = 0; first < a.m; first += kCudaTokens) {
    const SparseInputParams p = sparse_input_params(a, first, workspace, device);
    TAMIS_RETURN_IF_ERROR(a.dtype == DType::bf16 ? run<DType::bf16>(p, device, stream)
                                                 : run<DType::f16>(p, device, stream));
  }
  return {};
}

}  // namespace tamis
