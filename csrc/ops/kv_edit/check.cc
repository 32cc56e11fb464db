// What kv_gather and kv_merge accept.
#include <algorithm>

#include "ops/kv_edit/kv_edit.h"

namespace tamis {
namespace {

Status bad(const char* function, const char* what, int64_t got, const char* wanted) {
  return error(Code::invalid_argument, "%s: %s: got %lld, wanted %s", function, what,
               static_cast<long long>(got), wanted);
}

Status check_list(const char* function, const char* what, const KvTokens& list, int64_t heads) {
  if (list.stride < 0) return bad(function, what, list.stride, "no width below 0");
  if (heads * list.stride > 0 && !list.index) {
    return error(Code::invalid_argument, "%s: %s: got null, wanted an array", function, what);
  }
  return {};
}

Status check_tokens(const char* function, const char* what, const KvTokens& list, int64_t heads,
                    int64_t tokens) {
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t count = list.count ? list.count[h] : list.stride;
    if (count < 0 || count > list.stride) return bad(function, what, count, "a count within it");
    const int32_t* x = list.index + h * list.stride;
    for (int64_t i = 0; i < count; ++i) {
      if (x[i] < 0 || x[i] >= tokens) return bad(function, what, x[i], "tokens that there are");
      if (i > 0 && x[i] <= x[i - 1]) return bad(function, what, x[i], "ascending tokens");
    }
  }
  return {};
}

}  // namespace

Status check_kv_gather_arrays(const KvGatherArgs& a) {
  if (std::min({a.heads, a.tokens, a.row_bytes}) < 0) {
    return bad("kv_gather", "x", -1, "no size below 0");
  }
  if (a.heads * a.index.stride * a.row_bytes > 0 && (!a.x || !a.out)) {
    return error(Code::invalid_argument, "kv_gather: x, out: got null, wanted arrays");
  }
  return check_list("kv_gather", "index", a.index, a.heads);
}

Status check_kv_gather(const KvGatherArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_gather_arrays(a));
  return check_tokens("kv_gather", "index", a.index, a.heads, a.tokens);
}

Status check_kv_merge_arrays(const KvMergeArgs& a) {
  if (std::min(a.heads, a.tokens) < 0) return bad("kv_merge", "keys", -1, "no size below 0");
  if (a.head_dim < 16 || a.head_dim > 256 || a.head_dim % 16 != 0) {
    return bad("kv_merge", "head_dim", a.head_dim, "a multiple of 16 from 16 to 256");
  }
  if (a.dtype != DType::f32 && a.dtype != DType::f16 && a.dtype != DType::bf16) {
    return error(Code::unsupported_dtype, "kv_merge: keys: got %s, wanted f32, f16 or bf16",
                 name_of(a.dtype));
  }
  if (a.heads * a.kept.stride > 0 && (!a.keys || !a.values || !a.out_values || !a.out_mass)) {
    return error(Code::invalid_argument, "kv_merge: keys, values, out: got null, wanted arrays");
  }
  TAMIS_RETURN_IF_ERROR(check_list("kv_merge", "kept", a.kept, a.heads));
  return check_list("kv_merge", "dropped", a.dropped, a.heads);
}

Status check_kv_merge(const KvMergeArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_merge_arrays(a));
  TAMIS_RETURN_IF_ERROR(check_tokens("kv_merge", "kept", a.kept, a.heads, a.tokens));
  return check_tokens("kv_merge", "dropped", a.dropped, a.heads, a.tokens);
}

}  // namespace tamis
