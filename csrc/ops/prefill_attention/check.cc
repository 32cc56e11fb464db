// What prefill_attention and its reference accept.
#include <algorithm>

#include "format/kv_page.h"
#include "format/matrix.h"
#include "ops/prefill_attention/prefill_attention.h"

namespace tamis {
namespace {

Status bad(const char* what, int64_t got, const char* wanted) {
  return error(Code::invalid_argument, "prefill_attention: %s: got %lld, wanted %s", what,
               static_cast<long long>(got), wanted);
}

Status check_float(const char* what, DType type) {
  if (type == DType::f32 || type == DType::f16 || type == DType::bf16) return {};
  return error(Code::unsupported_dtype, "prefill_attention: %s: got %s, wanted f32, f16 or bf16",
               what, name_of(type));
}

Status check_ascending(const char* what, const int32_t* x, int64_t count, int64_t most) {
  for (int64_t i = 0; i < count; ++i) {
    if (x[i] < 0 || x[i] >= most) return bad(what, x[i], "numbers of what there is");
    if (i > 0 && x[i] <= x[i - 1]) return bad(what, x[i], "ascending numbers");
  }
  return {};
}

Status check_list(const char* what, const PrefillList& list, int64_t batch, int64_t most) {
  if (!list.data) return {};
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t count = list.count ? list.count[b] : list.stride;
    if (count < 0 || count > list.stride) return bad(what, count, "a count within the list");
    TAMIS_RETURN_IF_ERROR(check_ascending(what, list.data + b * list.stride, count, most));
  }
  return {};
}

Status check_blocks(const PrefillArgs& a) {
  const PrefillBlocks& x = a.blocks;
  if (x.size == 0) return {};
  const int64_t blocks = ceil_div(a.tokens, x.size);
  for (int64_t head = 0; head < a.pattern_heads; ++head) {
    const int32_t* offset = x.offsets + head * (blocks + 1);
    if (offset[0] != 0) return bad("block offsets", offset[0], "0 first");
    for (int64_t i = 0; i < blocks; ++i) {
      if (offset[i + 1] < offset[i] || offset[i + 1] > x.stride) {
        return bad("block offsets", offset[i + 1], "ascending ones within the columns");
      }
      TAMIS_RETURN_IF_ERROR(check_ascending("block columns",
                                            x.columns + head * x.stride + offset[i],
                                            offset[i + 1] - offset[i], blocks));
    }
  }
  return {};
}

}  // namespace

Status check_prefill_call(const PrefillArgs& a) {
  if (std::min({a.batch, a.heads, a.queries, a.tokens}) < 0) {
    return bad("q", -1, "no size below 0");
  }
  if (a.kv_heads < 1 || a.heads % a.kv_heads != 0) {
    return bad("kv_heads", a.kv_heads, "a divisor of the query heads");
  }
  if (a.head_dim < 16 || a.head_dim > kKvMaxHeadDim || a.head_dim % 16 != 0) {
    return bad("head_dim", a.head_dim, "a multiple of 16 from 16 to 256");
  }
  if (a.first < 0 || std::max(a.first + a.queries, a.tokens) > 1 << 24) {
    return bad("tokens", std::max(a.first + a.queries, a.tokens), "at most 2^24");
  }
  TAMIS_RETURN_IF_ERROR(check_float("q", a.q_dtype));
  TAMIS_RETURN_IF_ERROR(check_float("keys", a.kv_dtype));
  const bool some = a.batch * a.heads * a.queries > 0;
  if (some && (!a.q.data || !a.out || (a.tokens > 0 && (!a.keys.data || !a.values.data)))) {
    return error(Code::invalid_argument,
                 "prefill_attention: q, keys, values, out: got null, wanted arrays");
  }
  if (a.pattern_heads != 1 && a.pattern_heads != a.kv_heads && a.pattern_heads != a.heads) {
    return bad("pattern_heads", a.pattern_heads, "1, the KV heads or the query heads");
  }
  if ((a.sink == nullptr) != (a.window == nullptr)) {
    return error(Code::invalid_argument,
                 "prefill_attention: sink, window: got one of them, wanted both or none");
  }
  if (a.blocks.size < 0) return bad("blocks", a.blocks.size, "a size of 1 or more");
  if (a.blocks.size > 0 && !(a.blocks.offsets && (a.blocks.columns || a.blocks.stride == 0))) {
    return error(Code::invalid_argument, "prefill_attention: blocks: got null, wanted arrays");
  }
  if (a.blocks.size > 0 && a.first + a.queries > a.tokens) {
    return bad("first", a.first, "queries among the tokens when there are blocks");
  }
  return {};
}

Status check_prefill_attention(const PrefillArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_prefill_call(a));
  for (int64_t i = 0; a.window && i < a.pattern_heads; ++i) {
    if (a.window[i] < 1) return bad("window", a.window[i], "1 or more");
    if (a.sink[i] < 0) return bad("sink", a.sink[i], "0 or more");
  }
  TAMIS_RETURN_IF_ERROR(check_list("rows", a.rows, a.batch, a.queries));
  TAMIS_RETURN_IF_ERROR(check_list("columns", a.columns, a.batch, a.tokens));
  return check_blocks(a);
}

}  // namespace tamis
