// spmm_grad from sm_80 on.
#include "base/cuda/launch.h"
#include "ops/spmm_grad/grad.cuh"
#include "ops/spmm_grad/spmm_grad_cuda.h"
#include "ops/spmm_grad/unpack.cuh"

namespace tamis {
namespace {

TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kGradThreads, 4) grad_places_kernel(const GradMask w) {
  grad_places(w);
}
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * kUnpackWarps, 12)
    unpack_mask_kernel(const DenseParams p) {
  unpack_mask(p);
}
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * kUnpackWarps, 12)
    gather_mask_kernel(const DenseParams p) {
  gather_mask(p);
}
template <DType kType>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kGradThreads, 2) sddmm_kernel(const SddmmParams p) {
  sddmm<kType>(p);
}
template <DType kType>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kGradThreads, 2) spmm_t_kernel(const SpmmTParams p) {
  spmm_t<kType>(p);
}
template <DType kType>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kGradThreads, 4) spmm_t_add_kernel(const SpmmTParams p) {
  spmm_t_add<kType>(p);
}

uint32_t tiles(int64_t extent, int64_t of) {
  return static_cast<uint32_t>(ceil_div(extent, of));
}

Status find_places(const char* op, const GradMask& w, void* stream) {
  return launch(op,
                {.grid = dim3(tiles(w.rows, kGradThreads / 32)),
                 .threads = kGradThreads,
                 .shared_bytes = 0,
                 .early = false,
                 .stream = stream},
                &grad_places_kernel, w);
}

template <DType kType>
Status run(const SddmmParams& p, const CudaDevice& device, void* stream) {
  TAMIS_RETURN_IF_ERROR(find_places("sddmm", p.w, stream));
  return launch_wide<&sddmm_kernel<kType>>(
      "sddmm", device, kSddmmShared,
      {.grid = dim3(tiles(p.k, kGradTile), tiles(p.w.rows, kGradTile)),
       .threads = kGradThreads,
       .shared_bytes = kSddmmShared,
       .early = false,
       .stream = stream},
      p);
}

template <DType kType>
Status run(const SpmmTParams& p, const CudaDevice&, void* stream) {
  TAMIS_RETURN_IF_ERROR(find_places("spmm_t", p.w, stream));
  const auto over_tokens = tiles(p.m, kGradTile) * static_cast<uint32_t>(p.splits);
  TAMIS_RETURN_IF_ERROR(launch("spmm_t",
                               {.grid = dim3(tiles(p.k, kGradTile), over_tokens),
                                .threads = kGradThreads,
                                .shared_bytes = kSpmmTShared,
                                .early = false,
                                .stream = stream},
                               &spmm_t_kernel<kType>, p));
  if (p.splits == 1) return {};
  return launch("spmm_t",
                {.grid = dim3(tiles(p.k, 2 * kGradThreads), static_cast<uint32_t>(p.m)),
                 .threads = kGradThreads,
                 .shared_bytes = 0,
                 .early = false,
                 .stream = stream},
                &spmm_t_add_kernel<kType>, p);
}

Status run(const char* op, void (*kernel)(DenseParams), const DenseParams& p, void* stream) {
  return launch(op,
                {.grid = dim3(tiles(p.w.rows, kUnpackWarps) * static_cast<uint32_t>(p.parts)),
                 .threads = 32 * kUnpackWarps,
                 .shared_bytes = kUnpackShared,
                 .early = false,
                 .stream = stream},
                kernel, p);
}

Status check_workspace(const char* op, const void* workspace, int64_t got, int64_t wanted) {
  if (got >= wanted && reinterpret_cast<uintptr_t>(workspace) % 16 == 0) return {};
  return error(Code::invalid_argument,
               "%s: workspace: got %lld bytes, wanted %lld at a multiple of 16", op,
               static_cast<long long>(got), static_cast<long long>(wanted));
}

}  // namespace

Status spmm_t_cuda(const SpmmTArgs& a, void* workspace, int64_t workspace_bytes,
                   const CudaDevice& device, void* stream) {
  int64_t bytes = 0;
  TAMIS_RETURN_IF_ERROR(spmm_t_workspace(a, device, &bytes));
  TAMIS_RETURN_IF_ERROR(check_workspace("spmm_t", workspace, workspace_bytes, bytes));
  if (a.m == 0 || a.w.cols == 0) return {};
  const SpmmTParams p = spmm_t_params(a, workspace, device);
  return a.dtype == DType::bf16 ? run<DType::bf16>(p, device, stream)
                                : run<DType::f16>(p, device, stream);
}

Status unpack_mask_cuda(const MatrixView& w, void* dense, void* stream) {
  TAMIS_RETURN_IF_ERROR(check_dense("unpack", w, dense));
  if (w.rows == 0 || w.cols == 0) return {};
  return run("unpack", &unpack_mask_kernel, dense_params(w, const_cast<void*>(w.values), dense),
             stream);
}

Status gather_mask_cuda(const MatrixView& w, const void* dense, void* values, void* stream) {
  TAMIS_RETURN_IF_ERROR(check_dense("gather", w, dense));
  if (w.nnz == 0) return {};
  return run("gather", &gather_mask_kernel, dense_params(w, values, const_cast<void*>(dense)),
             stream);
}

Status sddmm_cuda(const SddmmArgs& a, void* workspace, int64_t workspace_bytes,
                  const CudaDevice& device, void* stream) {
  int64_t bytes = 0;
  TAMIS_RETURN_IF_ERROR(sddmm_workspace(a, device, &bytes));
  TAMIS_RETURN_IF_ERROR(check_workspace("sddmm", workspace, workspace_bytes, bytes));
  if (a.w.nnz == 0) return {};
  const SddmmParams p = sddmm_params(a, workspace);
  return a.dtype == DType::bf16 ? run<DType::bf16>(p, device, stream)
                                : run<DType::f16>(p, device, stream);
}

}  // namespace tamis
