// What the forms packed for CUDA from bitmap or nm have in common: what they take, and its values.
#pragma once

#include "base/status.h"
#include "format/matrix.h"

namespace tamis {

inline Status check_masked(const char* name, const MatrixView& a) {
  if (a.format == Format::bitmap || a.format == Format::nm) return {};
  return error(Code::invalid_argument, "%s: format: got %s, wanted bitmap or nm", name,
               name_of(a.format));
}

inline Status check_masked_halves(const char* name, const MatrixView& a) {
  TAMIS_RETURN_IF_ERROR(check_masked(name, a));
  if (a.dtype == DType::bf16 || a.dtype == DType::f16) return {};
  return error(Code::unsupported_dtype, "%s: dtype: got %s, wanted bf16 or f16", name,
               name_of(a.dtype));
}

// Index of a row's first stored value, or of the end for the row after the last.
inline int64_t first_value(const MatrixView& a, int64_t row) {
  return a.format == Format::nm ? row * (a.cols / a.of) * a.keep : a.row_offsets[row];
}

}  // namespace tamis
