// Argument check of spmm: O(1), so that it can run on every call.
#include "ops/spmm/check.h"

namespace tamis {
namespace {

Status missing(const char* what) {
  return error(Code::invalid_argument, "spmm: %s: got null, wanted an array", what);
}

Status check_weight(const MatrixView& w) {
  if (w.rows < 0 || w.cols < 0 || w.nnz < 0) {
    return error(Code::invalid_argument,
                 "spmm: w: got shape [%lld, %lld] with %lld values, wanted none below 0",
                 static_cast<long long>(w.rows), static_cast<long long>(w.cols),
                 static_cast<long long>(w.nnz));
  }
  if (w.rows == 0 || w.cols == 0) return {};
  if (w.nnz > 0 && !w.values) return missing("w.values");
  const bool masked =
      w.format == Format::bitmap || w.format == Format::nm || w.format == Format::groupq;
  const bool indexed = w.format == Format::csr || w.format == Format::block;
  if (masked && !w.mask) return missing("w.mask");
  if (w.format != Format::nm && !w.row_offsets) return missing("w.row_offsets");
  if (w.format == Format::csr8 && !w.col_bytes) return missing("w.col_bytes");
  if (indexed && w.nnz > 0 && !w.col_indices) return missing("w.col_indices");
  if (w.format == Format::nm && (w.keep < 0 || w.of < 1 || w.keep > w.of || w.cols % w.of != 0)) {
    return error(
        Code::invalid_argument,
        "spmm: w: got %d of %d over %lld columns, wanted keep <= of and of dividing columns",
        w.keep, w.of, static_cast<long long>(w.cols));
  }
  if (w.format == Format::block && (w.block_rows < 1 || w.block_cols < 1 ||
                                    w.rows % w.block_rows != 0 || w.cols % w.block_cols != 0)) {
    return error(Code::invalid_argument,
                 "spmm: w: got blocks of %dx%d in [%lld, %lld], wanted sizes that divide it",
                 w.block_rows, w.block_cols, static_cast<long long>(w.rows),
                 static_cast<long long>(w.cols));
  }
  if (w.dtype == DType::i8 && !w.scales) return missing("w.scales");
  if (w.dtype == DType::i8 && w.group_size < 1) {
    return error(Code::invalid_argument, "spmm: w.group_size: got %lld, wanted at least 1",
                 static_cast<long long>(w.group_size));
  }
  if (w.format == Format::groupq) {
    if (w.nnz > 0 && !w.group_scales) return missing("w.group_scales");
    if ((w.group_size != 16 && w.group_size != 32) || w.cols % w.group_size != 0) {
      return error(
          Code::invalid_argument,
          "spmm: w.group_size: got %lld for %lld columns, wanted 16 or 32 that divide them",
          static_cast<long long>(w.group_size), static_cast<long long>(w.cols));
    }
  }
  return {};
}

Status check_stride(const char* name, int64_t stride, int64_t width, int64_t m) {
  if (m <= 1 || stride >= width) return {};
  return error(Code::invalid_argument, "spmm: %s: got %lld, wanted at least %lld", name,
               static_cast<long long>(stride), static_cast<long long>(width));
}

}  // namespace

Status check_spmm(const SpmmArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_weight(a.w));
  if (!is_float(a.x_dtype)) {
    return error(Code::unsupported_dtype, "spmm: x: got %s, wanted f32, f16 or bf16",
                 name_of(a.x_dtype));
  }
  if (a.m < 0) {
    return error(Code::invalid_argument, "spmm: m: got %lld, wanted at least 0",
                 static_cast<long long>(a.m));
  }
  TAMIS_RETURN_IF_ERROR(check_stride("x_stride", a.x_stride, a.w.cols, a.m));
  TAMIS_RETURN_IF_ERROR(check_stride("y_stride", a.y_stride, a.w.rows, a.m));
  if (a.multiplier) {
    TAMIS_RETURN_IF_ERROR(check_stride("multiplier_stride", a.multiplier_stride, a.w.rows, a.m));
  }
  if (a.m > 0 && a.w.cols > 0 && a.w.rows > 0 && !a.x) return missing("x");
  if (a.m > 0 && a.w.rows > 0 && !a.y) return missing("y");
  return {};
}

}  // namespace tamis
