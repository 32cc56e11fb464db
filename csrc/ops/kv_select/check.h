// What the checks of kv_select have in common on the CPU and on CUDA.
#pragma once

#include "ops/kv_select/kv_select.h"

namespace tamis::kv_select_checks {

inline Status bad(const char* what, int64_t got, const char* wanted) {
  return error(Code::invalid_argument, "kv_select: %s: got %lld, wanted %s", what,
               static_cast<long long>(got), wanted);
}

inline Status check_float(const char* what, DType type) {
  if (type == DType::f32 || type == DType::f16 || type == DType::bf16) return {};
  return error(Code::unsupported_dtype, "kv_select: %s: got %s, wanted f32, f16 or bf16", what,
               name_of(type));
}

inline Status check_head_dim(int64_t d) {
  if (d >= 16 && d <= kMaxWidth / 2 && d % 16 == 0) return {};
  return bad("head_dim", d, "a multiple of 16 from 16 to 256");
}

}  // namespace tamis::kv_select_checks
