// What arguments of spmm_grad must be.
#include "ops/spmm_grad/spmm_grad.h"

namespace tamis {
namespace {

// What both ops ask; `width` columns of `other` beside dy's n.
Status check(const char* op, const MatrixView& w, DType dtype, int64_t m, int64_t dy_stride,
             const char* other, int64_t other_stride) {
  if (w.format != Format::bitmap && w.format != Format::nm && w.format != Format::csr) {
    return error(Code::no_kernel, "%s: w: got format %s, wanted bitmap, nm or csr; unpack it", op,
                 name_of(w.format));
  }
  if (!is_float(w.dtype) || !is_float(dtype)) {
    return error(Code::unsupported_dtype, "%s: w, dtype: got %s and %s, wanted f32, f16 or bf16",
                 op, name_of(w.dtype), name_of(dtype));
  }
  if (m < 0) {
    return error(Code::invalid_argument, "%s: m: got %lld, wanted 0 or more", op,
                 static_cast<long long>(m));
  }
  if (m > 1 && (dy_stride < w.rows || other_stride < w.cols)) {
    return error(Code::invalid_argument,
                 "%s: dy_stride, %s_stride: got %lld and %lld, wanted at least %lld and %lld", op,
                 other, static_cast<long long>(dy_stride), static_cast<long long>(other_stride),
                 static_cast<long long>(w.rows), static_cast<long long>(w.cols));
  }
  return {};
}

Status missing(const char* op) {
  return error(Code::invalid_argument, "%s: arrays: got null, wanted memory", op);
}

}  // namespace

Status check_spmm_t(const SpmmTArgs& a) {
  TAMIS_RETURN_IF_ERROR(check("spmm_t", a.w, a.dtype, a.m, a.dy_stride, "dx", a.dx_stride));
  const bool reads = a.m > 0 && a.w.nnz > 0;
  if ((reads && (!a.dy || !a.w.values)) || (a.m * a.w.cols > 0 && !a.dx)) return missing("spmm_t");
  return {};
}

Status check_sddmm(const SddmmArgs& a) {
  TAMIS_RETURN_IF_ERROR(check("sddmm", a.w, a.dtype, a.m, a.dy_stride, "x", a.x_stride));
  if (a.w.nnz > 0 && (!a.dw || (a.m > 0 && (!a.dy || !a.x)))) return missing("sddmm");
  return {};
}

}  // namespace tamis
