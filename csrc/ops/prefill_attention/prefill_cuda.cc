// prefill_attention on CUDA: the checks of a call and its layout.
#include "ops/prefill_attention/prefill_cuda.h"

#include <algorithm>

#include "ops/prefill_attention/prefill_params.h"

namespace tamis {
namespace {

constexpr PrefillCudaRow kRows[] = {
#define TAMIS_PREFILL_CUDA(dtype, d, row_tiles)                         \
  {row_tiles == 1 ? "prefill_attention_" #dtype "_d" #d "_q64_sm80up"   \
                  : "prefill_attention_" #dtype "_d" #d "_q128_sm80up", \
   DType::dtype, d, 64 * row_tiles},
#include "ops/prefill_attention/kernels_cuda.def"
#undef TAMIS_PREFILL_CUDA
};

Status bad(const char* what, int64_t got, const char* wanted) {
  return error(Code::invalid_argument, "prefill_attention: %s: got %lld, wanted %s", what,
               static_cast<long long>(got), wanted);
}

Status check_rows(const char* what, const PrefillArray& x, DType type) {
  const int64_t each = 16 / size_of(type);
  if (reinterpret_cast<uintptr_t>(x.data) % 16 != 0 || x.batch_stride % each != 0 ||
      x.head_stride % each != 0 || x.token_stride % each != 0) {
    return error(Code::no_kernel,
                 "prefill_attention: %s: got rows that do not start on multiples of 16 bytes; make "
                 "it contiguous",
                 what);
  }
  return {};
}

}  // namespace

std::span<const PrefillCudaRow> prefill_cuda_kernels() {
  return kRows;
}

const PrefillCudaRow* choose_prefill_cuda(const PrefillArgs& a) {
  const int32_t queries = a.blocks.size > 0 && a.blocks.size <= 64 ? 64 : 128;
  for (const PrefillCudaRow& row : kRows) {
    if (row.dtype == a.q_dtype && row.dtype == a.kv_dtype && row.head_dim == a.head_dim &&
        row.queries == queries) {
      return &row;
    }
  }
  return nullptr;
}

Status check_prefill_cuda(const PrefillArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_prefill_call(a));
  if (a.batch * a.heads > 65535) return bad("heads", a.batch * a.heads, "at most 65535 on CUDA");
  if (choose_prefill_cuda(a) == nullptr) {
    return error(Code::no_kernel,
                 "prefill_attention: got q of %s, keys of %s and head_dim %lld, wanted f16 or bf16 "
                 "for both and 64 or 128 on CUDA",
                 name_of(a.q_dtype), name_of(a.kv_dtype), static_cast<long long>(a.head_dim));
  }
  if (!(a.scale > 0)) {
    return error(Code::no_kernel, "prefill_attention: scale: got %g, wanted above 0 on CUDA",
                 static_cast<double>(a.scale));
  }
  if (a.blocks.size > 0 && (a.rows.data || a.columns.data)) {
    return error(Code::no_kernel,
                 "prefill_attention: blocks: got rows or columns too, wanted one of them on CUDA");
  }
  TAMIS_RETURN_IF_ERROR(check_rows("q", a.q, a.q_dtype));
  TAMIS_RETURN_IF_ERROR(check_rows("keys", a.keys, a.kv_dtype));
  return check_rows("values", a.values, a.kv_dtype);
}

int32_t prefill_tiles(const PrefillArgs& a, int32_t queries) {
  if (a.blocks.size == 0) {
    const int64_t slots = a.rows.data ? std::min(a.rows.stride, a.queries) : a.queries;
    return static_cast<int32_t>(ceil_div(slots, queries));
  }
  const int64_t first = a.first / a.blocks.size, last = (a.first + a.queries - 1) / a.blocks.size;
  return static_cast<int32_t>((last - first + 1) * ceil_div(a.blocks.size, queries));
}

PrefillParams prefill_params(const PrefillArgs& a, int32_t queries) {
  const auto narrow = [](int64_t x) { return static_cast<int32_t>(x); };
  return {.q = static_cast<const uint8_t*>(a.q.data),
          .keys = static_cast<const uint8_t*>(a.keys.data),
          .values = static_cast<const uint8_t*>(a.values.data),
          .out = static_cast<uint8_t*>(a.out),
          .lse = a.lse,
          .q_batch = 2 * a.q.batch_stride,
          .q_head = 2 * a.q.head_stride,
          .q_token = 2 * a.q.token_stride,
          .key_batch = 2 * a.keys.batch_stride,
          .key_head = 2 * a.keys.head_stride,
          .key_token = 2 * a.keys.token_stride,
          .value_batch = 2 * a.values.batch_stride,
          .value_head = 2 * a.values.head_stride,
          .value_token = 2 * a.values.token_stride,
          .out_batch = 2 * a.out_batch_stride,
          .out_head = 2 * a.out_head_stride,
          .out_token = 2 * a.out_token_stride,
          .heads = narrow(a.heads),
          .group = narrow(a.heads / a.kv_heads),
          .queries = narrow(a.queries),
          .tokens = narrow(a.tokens),
          .first = narrow(a.first),
          .scale = a.scale,
          .softcap = a.softcap,
          .causal = a.causal,
          .begin = a.begin,
          .pattern_group = narrow(a.heads / a.pattern_heads),
          .sink = a.sink,
          .window = a.window,
          .block = narrow(a.blocks.size),
          .blocks = a.blocks.size > 0 ? narrow(ceil_div(a.tokens, a.blocks.size)) : 0,
          .block_tiles = a.blocks.size > 0 ? narrow(ceil_div(a.blocks.size, queries)) : 1,
          .offsets = a.blocks.offsets,
          .block_columns = a.blocks.columns,
          .block_stride = narrow(a.blocks.stride),
          .rows = a.rows.data,
          .row_count = a.rows.count,
          .columns = a.columns.data,
          .column_count = a.columns.count,
          .row_stride = narrow(a.rows.stride),
          .column_stride = narrow(a.columns.stride)};
}

}  // namespace tamis
