// spmm_grad from sm_80 on.
#include "base/cuda/launch.h"
#include "ops/spmm_grad/spmm_grad_cuda.h"
#include "ops/spmm_grad/unpack.cuh"

namespace tamis {
namespace {

// 12 blocks fill the shared memory of an SM of sm_90.
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * kUnpackWarps, 12)
    unpack_mask_kernel(const DenseParams p) {
  unpack_mask(p);
}
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * kUnpackWarps, 12)
    gather_mask_kernel(const DenseParams p) {
  gather_mask(p);
}

Status run(const char* op, void (*kernel)(DenseParams), const DenseParams& p, void* stream) {
  const auto groups = static_cast<uint32_t>(ceil_div(p.rows, kUnpackWarps));
  return launch(op,
                {.grid = dim3(groups * static_cast<uint32_t>(p.parts)),
                 .threads = 32 * kUnpackWarps,
                 .shared_bytes = kUnpackShared,
                 .early = false,
                 .stream = stream},
                kernel, p);
}

}  // namespace

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

}  // namespace tamis
