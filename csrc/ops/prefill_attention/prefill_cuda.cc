// prefill_attention on CUDA: the checks of a call and its layout.
#include "ops/prefill_attention/prefill_cuda.h"

#include <algorithm>

#include "ops/prefill_attention/prefill_params.h"

namespace tamis {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

constexpr PrefillCudaRow kRows[] = {
#define TAMIS_PREFILL_CUDA(dtype, d, row_tiles)                         \
  {row_tiles == 1 ? "prefill_attention_" #dtype "_d" #d "_q64_sm80up"   \
                  : "prefill_attention_" #dtype "_d" #d "_q128_sm80up", \
   DType::dtype, d, 64 * row_tiles, 80},
#define TAMIS_PREFILL_GROUP(dtype, d, groups)                      \
  {groups == 2 ? "prefill_attention_" #dtype "_d" #d "_q128_sm90"  \
               : "prefill_attention_" #dtype "_d" #d "_q192_sm90", \
   DType::dtype, d, 64 * groups, 90},
#define TAMIS_PREFILL_SHORT(dtype, d) \
  {"prefill_attention_" #dtype "_d" #d "_q64_sm90", DType::dtype, d, 64, 90},
#include "ops/prefill_attention/kernels_cuda.def"
#undef TAMIS_PREFILL_SHORT
#undef TAMIS_PREFILL_GROUP
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

int64_t packed_bytes(const PrefillArgs& a) {
  return 2 * a.batch * a.kv_heads * a.columns.stride * a.head_dim;
}

// Whether keys and values of listed tokens are packed first.
bool packs(const PrefillArgs& a) {
  constexpr int64_t kManyListed = 256;  // below, packing takes what it saves
  return a.columns.data != nullptr && a.columns.stride >= kManyListed;
}

// Neighbouring heads that share keys, values and pattern: 1 or 2.
int32_t heads_alike(const PrefillArgs& a) {
  return a.heads / a.kv_heads % 2 == 0 && a.heads / a.pattern_heads % 2 == 0 ? 2 : 1;
}

// Warpgroups that multiply. Three hide more of the weights' making, which at 64 channels takes as
// long as the products, but need boxes, and enough long tiles of 192 queries that all of the device
// ends together: at 32 heads faster from 4096 queries on, slower at 2048 (bench/results/gpu.md).
int32_t groups_for(const PrefillArgs& a, const CudaDevice& device) {
  constexpr int64_t kTilesOfHead = 20, kTilesOfSm = 2;
  const bool boxes = a.blocks.size == 0 && (a.columns.data == nullptr || packs(a));
  const int64_t tiles = prefill_tiles(a, 192);
  const bool many = tiles >= kTilesOfHead && tiles * a.batch * a.heads >= kTilesOfSm * device.sms;
  return a.head_dim == 64 && boxes && many ? 3 : 2;
}

// Whether a prompt is whole and so short that all of it is multiplied at once, faster than by tiles
// that follow each other (bench/results/gpu.md).
bool is_short(const PrefillArgs& a, const CudaDevice& device) {
  const bool whole = a.rows.data == nullptr && a.columns.data == nullptr && a.blocks.size == 0 &&
                     a.sink == nullptr && a.window == nullptr;
  const int64_t key_tiles = ceil_div(a.tokens, kPrefillShortKeys);
  if (!whole || key_tiles > kPrefillShortTiles) return false;
  const int64_t most = a.head_dim == 128 ? 17 : key_tiles <= 4 ? 60 : 10;  // blocks of ten SMs
  return 10 * prefill_short_blocks(a, prefill_short_tiles_of_block(a, device)) <= most * device.sms;
}

}  // namespace

std::span<const PrefillCudaRow> prefill_cuda_kernels() {
  return kRows;
}

const PrefillCudaRow* choose_prefill_cuda(const PrefillArgs& a, const CudaDevice& device) {
  const bool narrow = a.blocks.size > 0 && a.blocks.size <= 64;
  const bool groups = device.capability == 90 && !(a.softcap > 0) &&
                      (heads_alike(a) == 2 || !narrow) &&
                      prefill_tiles(a, 64) * a.batch * a.heads < kPrefillMostWorks;
  const int32_t queries = !groups               ? (narrow ? 64 : 128)
                          : is_short(a, device) ? 64
                                                : 64 * groups_for(a, device);
  for (const PrefillCudaRow& row : kRows) {
    if (row.dtype == a.q_dtype && row.dtype == a.kv_dtype && row.head_dim == a.head_dim &&
        row.queries == queries && (row.capability == 90) == groups) {
      return &row;
    }
  }
  return nullptr;
}

Status check_prefill_cuda(const PrefillArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_prefill_call(a));
  if (a.batch * a.heads > 65535) return bad("heads", a.batch * a.heads, "at most 65535 on CUDA");
  if (choose_prefill_cuda(a, {.capability = 80}) == nullptr) {
    return error(
        Code::no_kernel,
        "prefill_attention: got q of %s, keys of %s and head_dim %lld, wanted f16 or bf16 "
        "for both and 64 or 128 on CUDA; convert the model to bf16, or choose a method that "
        "leaves prompts dense",
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
  TAMIS_RETURN_IF_ERROR(check_rows("values", a.values, a.kv_dtype));
  return check_rows("out", {a.out, a.out_batch_stride, a.out_head_stride, a.out_token_stride},
                    a.q_dtype);
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

int64_t prefill_workspace_cuda(const PrefillArgs& a, const CudaDevice& device) {
  const PrefillCudaRow* row = choose_prefill_cuda(a, device);
  if (row == nullptr || row->capability != 90 || !packs(a)) return 0;
  return 2 * packed_bytes(a);
}

PrefillPackParams prefill_pack_params(const PrefillArgs& a) {
  auto* keys = static_cast<uint8_t*>(a.workspace);
  return {.p = prefill_params(a, 128),
          .keys = keys,
          .values = keys + packed_bytes(a),
          .kv_heads = static_cast<int32_t>(a.kv_heads),
          .row_bytes = static_cast<int32_t>(2 * a.head_dim)};
}

PrefillArray prefill_packed(const PrefillArgs& a, const uint8_t* data) {
  const int64_t of_head = a.columns.stride * a.head_dim;
  return {data, a.kv_heads * of_head, of_head, a.head_dim};
}

PrefillGroupParams prefill_group_params(const PrefillArgs& a, const CudaDevice& device,
                                        int32_t groups) {
  // Keys and values of heads whose works run at a time stay in the L2 cache, of 50 MB.
  constexpr int64_t kHeldBytes = int64_t{32} << 20;
  const int32_t alike = groups == 2 ? heads_alike(a) : 1, queries = 64 * groups / alike;
  const int64_t listed = a.columns.data ? a.columns.stride : a.tokens;
  const int64_t kv_bytes = std::max<int64_t>(listed * a.head_dim * 4, 1);
  const int64_t all = a.batch * a.heads / alike, of_kv_head = a.heads / a.kv_heads / alike;
  int64_t together = std::clamp(kHeldBytes / kv_bytes * of_kv_head, of_kv_head, all);
  while (all % together != 0) --together;
  const int32_t tiles = prefill_tiles(a, queries);
  const int64_t works = tiles * all;
  const bool packed = a.workspace != nullptr && prefill_workspace_cuda(a, device) > 0;
  return {.p = prefill_params(a, queries),
          .factor = a.scale * kLog2E,
          .heads_of_block = alike,
          .queries = queries,
          .tiles = tiles,
          .together = static_cast<int32_t>(together),
          .works = static_cast<int32_t>(works),
          .blocks = static_cast<int32_t>(std::min<int64_t>(works, device.sms)),
          .ticket = works > device.sms ? static_cast<uint32_t*>(a.tickets) : nullptr,
          .by_section = divisor_of(std::max<int64_t>(together * tiles, 1)),
          .by_together = divisor_of(together),
          .by_blocks = divisor_of(a.heads / alike),
          .by_heads = divisor_of(a.heads),
          .by_group = divisor_of(a.heads / a.kv_heads),
          .by_pattern = divisor_of(a.heads / a.pattern_heads),
          .boxes = packed || (a.columns.data == nullptr && a.blocks.size % kPrefillBoxTokens == 0),
          .packed = packed,
          .query_boxed = a.rows.data == nullptr && a.blocks.size == 0};
}

int32_t prefill_short_tiles_of_block(const PrefillArgs& a, const CudaDevice& device) {
  const bool one_a_multiprocessor = a.head_dim == 64 && a.tokens > 4 * kPrefillShortKeys;
  return one_a_multiprocessor && prefill_short_blocks(a, 1) > device.sms ? 2 : 1;
}

int64_t prefill_short_blocks(const PrefillArgs& a, int32_t tiles) {
  return ceil_div(prefill_tiles(a, 64), tiles) * a.batch * a.heads;
}

PrefillShortParams prefill_short_params(const PrefillArgs& a) {
  const int64_t key_tiles = ceil_div(a.tokens, kPrefillShortKeys);
  const auto most = int64_t{prefill_short_held(static_cast<int32_t>(a.head_dim))};
  return {.p = prefill_params(a, 64),
          .factor = a.scale * kLog2E,
          .tiles = prefill_tiles(a, 64),
          .key_tiles = static_cast<int32_t>(key_tiles),
          .held = static_cast<int32_t>(std::min(2 * ceil_div(key_tiles, 2), most)),
          .by_heads = divisor_of(a.heads),
          .by_group = divisor_of(a.heads / a.kv_heads)};
}

HeadBoxes prefill_boxes(const PrefillArgs& a, const PrefillArray& x, int64_t heads, int64_t rows) {
  return {.data = x.data,
          .batches = a.batch,
          .heads = heads,
          .rows = rows,
          .cols = a.head_dim,
          .batch_stride = x.batch_stride,
          .head_stride = x.head_stride,
          .stride = x.token_stride,
          .box_rows = kPrefillBoxTokens};
}

}  // namespace tamis
