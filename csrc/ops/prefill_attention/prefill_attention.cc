// prefill_attention: cuts the queries into tiles, lists what each may see and runs the kernel.
#include "ops/prefill_attention/prefill_attention.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "base/scratch.h"
#include "format/matrix.h"
#include "ops/prefill_attention/kernels.h"

namespace tamis {
namespace {

constexpr PrefillRow kKernels[] = {
#define TAMIS_PREFILL(level) \
  {"prefill_attention_" #level, isa::level, false, &prefill_floats, &prefill_attention_##level},
#define TAMIS_PREFILL_TILES(level)                                           \
  {"prefill_attention_bf16_" #level, isa::level, true, &prefill_tile_floats, \
   &prefill_attention_bf16_##level},
#include "ops/prefill_attention/kernels.def"
#undef TAMIS_PREFILL_TILES
#undef TAMIS_PREFILL
};

constexpr int64_t kMostQueries = 64;  // of a tile and a head

// Heads that read the same keys through the same pattern: those of a group, or one.
struct Unit {
  int64_t batch, head, heads, kv_head, pattern;
};

Unit unit_at(const PrefillArgs& a, int64_t number) {
  const int64_t group = a.heads / a.kv_heads;
  if (a.pattern_heads == a.heads && a.pattern_heads != a.kv_heads) {
    const int64_t head = number % a.heads;
    return {number / a.heads, head, 1, head / group, head};
  }
  const int64_t g = number % a.kv_heads;
  return {number / a.kv_heads, g * group, group, g, a.pattern_heads == 1 ? 0 : g};
}

int64_t units_of(const PrefillArgs& a) {
  const bool single = a.pattern_heads == a.heads && a.pattern_heads != a.kv_heads;
  return a.batch * (single ? a.heads : a.kv_heads);
}

int64_t count_of(const PrefillList& list, int64_t batch, int64_t all) {
  if (!list.data) return all;
  return list.count ? list.count[batch] : list.stride;
}

int64_t query_at(const PrefillArgs& a, int64_t batch, int64_t slot) {
  return a.rows.data ? a.rows.data[batch * a.rows.stride + slot] : slot;
}

// One past the last slot of the tile that starts at `slot`: a tile stays within a block.
int64_t tile_end(const PrefillArgs& a, const Unit& u, int64_t slot, int64_t slots, int64_t most) {
  int64_t end = std::min(slot + most, slots);
  if (a.blocks.size == 0) return end;
  const int64_t block = (a.first + query_at(a, u.batch, slot)) / a.blocks.size;
  while ((a.first + query_at(a, u.batch, end - 1)) / a.blocks.size != block) --end;
  return end;
}

// Adds the tokens of [begin, end) that columns, where given, list.
int64_t add(const PrefillArgs& a, int64_t batch, int64_t begin, int64_t end, int64_t count,
            int32_t* out) {
  if (a.columns.data) {
    const int32_t* list = a.columns.data + batch * a.columns.stride;
    const int32_t* last = list + count_of(a.columns, batch, 0);
    for (const int32_t* t = std::lower_bound(list, last, begin); t != last && *t < end; ++t) {
      out[count++] = *t;
    }
    return count;
  }
  for (int64_t t = begin; t < end; ++t) out[count++] = static_cast<int32_t>(t);
  return count;
}

// Tokens that any query at tokens [low, high] of the unit may see; how many.
int64_t list_tokens(const PrefillArgs& a, const Unit& u, int64_t low, int64_t high, int32_t* out) {
  const int64_t base = a.begin ? std::clamp<int64_t>(a.begin[u.batch], 0, a.tokens) : 0;
  const int64_t limit = a.causal ? std::min(high + 1, a.tokens) : a.tokens;
  const int64_t window = a.window ? a.window[u.pattern] : 0;
  const int64_t sink = window > 0 ? a.sink[u.pattern] : 0;
  const int64_t recent = window > 0 ? std::max({base, sink, low - window + 1}) : base;
  int64_t count = 0;
  const auto within = [&](int64_t begin, int64_t end) {
    count = add(a, u.batch, std::max(begin, base), std::min({end, sink, limit}), count, out);
    count = add(a, u.batch, std::max(begin, recent), std::min(end, limit), count, out);
  };
  if (a.blocks.size == 0) {
    within(0, a.tokens);
    return count;
  }
  const int64_t blocks = ceil_div(a.tokens, a.blocks.size), row = low / a.blocks.size;
  const int32_t* offset = a.blocks.offsets + u.pattern * (blocks + 1) + row;
  for (int64_t i = offset[0]; i < offset[1]; ++i) {
    const int64_t block = a.blocks.columns[u.pattern * a.blocks.stride + i];
    within(block * a.blocks.size, (block + 1) * a.blocks.size);
  }
  return count;
}

const void* element(const PrefillArray& x, DType type, int64_t batch, int64_t head, int64_t token) {
  const int64_t at = batch * x.batch_stride + head * x.head_stride + token * x.token_stride;
  return static_cast<const uint8_t*>(x.data) + at * size_of(type);
}

// One tile of a unit: slots [begin, end) of its queries, all its heads.
void run_tile(const PrefillArgs& a, const PrefillRow& kernel, const Unit& u, int64_t begin,
              int64_t end, bool fresh, float* memory, int32_t* list) {
  const int64_t queries = end - begin;
  const int64_t low = a.first + query_at(a, u.batch, begin);
  const int64_t high = a.first + query_at(a, u.batch, end - 1);
  const int64_t count = list_tokens(a, u, low, high, list);
  const int64_t most = std::max<int64_t>(kPrefillRows / queries, 1);  // heads of a call
  for (int64_t head = 0; head < u.heads; head += most) {
    const void* q[kPrefillRows];
    void* out[kPrefillRows];
    float* lse[kPrefillRows];
    int32_t position[kPrefillRows];
    int64_t rows = 0;
    for (int64_t h = u.head + head; h < u.head + std::min(head + most, u.heads); ++h) {
      for (int64_t slot = begin; slot < end; ++slot, ++rows) {
        const int64_t i = query_at(a, u.batch, slot);
        q[rows] = element(a.q, a.q_dtype, u.batch, h, i);
        out[rows] =
            static_cast<uint8_t*>(a.out) +
            (u.batch * a.out_batch_stride + h * a.out_head_stride + i * a.out_token_stride) *
                size_of(a.q_dtype);
        lse[rows] = a.lse ? a.lse + (u.batch * a.heads + h) * a.queries + i : nullptr;
        position[rows] = static_cast<int32_t>(a.first + i);
      }
    }
    kernel.run({.q_dtype = a.q_dtype,
                .kv_dtype = a.kv_dtype,
                .rows = rows,
                .head_dim = a.head_dim,
                .q = q,
                .position = position,
                .out = out,
                .lse = a.lse ? lse : nullptr,
                .keys = element(a.keys, a.kv_dtype, u.batch, u.kv_head, 0),
                .values = element(a.values, a.kv_dtype, u.batch, u.kv_head, 0),
                .key_stride = a.keys.token_stride,
                .value_stride = a.values.token_stride,
                .tokens = list,
                .count = count,
                .causal = a.causal,
                .sink = a.window ? a.sink[u.pattern] : 0,
                .window = a.window ? a.window[u.pattern] : 0,
                .scale = a.scale,
                .softcap = a.softcap,
                .most = a.tokens,
                .fresh = fresh,
                .memory = memory});
    fresh = false;
  }
}

}  // namespace

std::span<const PrefillRow> prefill_attention_kernels() {
  return kKernels;
}

const PrefillRow& choose_prefill_attention(DType q_dtype, DType kv_dtype, IsaBits isa) {
  const bool bf16 = q_dtype == DType::bf16 && kv_dtype == DType::bf16;
  for (const PrefillRow& row : kKernels) {
    if ((row.isa & isa) == row.isa && (bf16 || !row.bf16)) return row;
  }
  return kKernels[std::size(kKernels) - 1];
}

Status prefill_attention(const PrefillArgs& args) {
  return prefill_attention_by(choose_prefill_attention(args.q_dtype, args.kv_dtype, active_isa()),
                              args);
}

Status prefill_attention_by(const PrefillRow& kernel, const PrefillArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_prefill_attention(a));
  if (a.batch * a.heads * a.queries == 0) return {};
  const int64_t group = unit_at(a, 0).heads;
  const int64_t most = std::clamp<int64_t>(kPrefillRows / group, 1, kMostQueries);
  const int64_t floats = kernel.floats(a.head_dim, a.tokens);
  const int64_t bytes = (floats + a.tokens) * static_cast<int64_t>(sizeof(float));
  const int64_t units = units_of(a);
  bool failed[256] = {};
  const auto run = [&](int thread, int threads) {
    auto* memory = static_cast<float*>(scratch(bytes));
    if (!memory) {
      failed[thread] = true;
      return;
    }
    auto* list = reinterpret_cast<int32_t*>(memory + floats);
    int64_t number = 0;  // later tiles see more, so threads take turns
    bool fresh = true;
    for (int64_t unit = 0; unit < units; ++unit) {
      const Unit u = unit_at(a, unit);
      const int64_t slots = count_of(a.rows, u.batch, a.queries);
      for (int64_t begin = 0, end = 0; begin < slots; begin = end) {
        end = tile_end(a, u, begin, slots, most);
        if (number++ % threads != thread) continue;
        run_tile(a, kernel, u, begin, end, fresh, memory, list);
        fresh = false;
      }
    }
  };
  // A thread is worth it from some 10 us of work on.
  const int64_t work = a.batch * a.heads * a.queries * a.tokens * a.head_dim;
  const int threads = static_cast<int>(
      std::clamp<int64_t>(work >> 19, 1, std::min<int64_t>(num_threads(), std::size(failed))));
  threads > 1 ? parallel(threads, run) : run(0, 1);
  if (std::any_of(std::begin(failed), std::end(failed), [](bool f) { return f; })) {
    return error(Code::out_of_memory, "prefill_attention: no memory for a tile");
  }
  return {};
}

}  // namespace tamis
