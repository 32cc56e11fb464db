// prefill_attention: out[h,i] = sum_t p[i,t] * v[t], p = softmax_t(f(scale * q[h,i] . k[t])), over
// the tokens t that query i sees. f(s) = softcap * tanh(s / softcap), or s. For prompts, whose
// queries see different tokens; the rows of sparse_attention all see the same.
//
// A query at token p sees token t if all that is given agrees:
//   causal   t <= p
//   begin    t >= begin[b]: tokens before it are padding
//   spans    t < sink[ph] or t > p - window[ph]
//   blocks   block t / size is listed for block p / size of pattern head ph
//   columns  t is listed for batch b
// and query i is computed at all only if rows, where given, lists it.
// Scores exist for kPrefillKeys tokens of a few queries at a time.
#pragma once

#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "base/isa.h"
#include "base/status.h"

namespace tamis {

// [b, heads, tokens, d] with d contiguous; strides in elements.
struct PrefillArray {
  const void* data = nullptr;
  int64_t batch_stride = 0, head_stride = 0, token_stride = 0;
};

// Ascending numbers [b, stride], the first count[b] of them; no data: all numbers.
struct PrefillList {
  const int32_t* data = nullptr;
  int64_t stride = 0;
  const int32_t* count = nullptr;  // null: stride
};

// Which blocks of `size` tokens see which: compressed rows over blocks of queries, for tokens
// [0, tokens). Blocks of a row ascend.
struct PrefillBlocks {
  int64_t size = 0;                  // 0: no blocks
  const int32_t* offsets = nullptr;  // [pattern_heads, ceil(tokens / size) + 1]
  const int32_t* columns = nullptr;  // [pattern_heads, stride]
  int64_t stride = 0;
};

struct PrefillArgs {
  DType q_dtype = DType::f32, kv_dtype = DType::f32;
  int64_t batch = 0, heads = 0, kv_heads = 0, queries = 0, tokens = 0, head_dim = 0;
  PrefillArray q = {}, keys = {}, values = {};
  void* out = nullptr;  // as q; queries that rows leave out are not written
  int64_t out_batch_stride = 0, out_head_stride = 0, out_token_stride = 0;
  float* lse = nullptr;  // [b, heads, queries] or null: log of the sum, -inf where nothing is seen
  float scale = 1.0f;
  float softcap = 0.0f;  // 0: none
  bool causal = true;
  int64_t first = 0;               // token of query 0
  const int32_t* begin = nullptr;  // [b]
  int64_t pattern_heads = 1;       // 1, kv_heads or heads
  const int32_t* sink = nullptr;   // [pattern_heads], with window
  const int32_t* window = nullptr;
  PrefillBlocks blocks = {};
  PrefillList rows = {}, columns = {};
  void* workspace = nullptr;  // on CUDA, of prefill_workspace_cuda() bytes, or null
  void* tickets = nullptr;    // on CUDA, four bytes of zero, and zero after it, or null
};

inline constexpr int kPrefillKeys = 64;   // tokens of a tile
inline constexpr int kPrefillRows = 256;  // most queries that share a tile, all heads together

// Queries that see some of the same tokens, which `tokens` lists in ascending order.
struct PrefillPart {
  DType q_dtype, kv_dtype;
  int64_t rows, head_dim;
  const void* const* q;     // [rows]
  const int32_t* position;  // [rows], their tokens
  void* const* out;
  float* const* lse;
  const void *keys, *values;  // token 0
  int64_t key_stride, value_stride;
  const int32_t* tokens;
  int64_t count;
  bool causal;
  int64_t sink, window;  // window 0: no spans
  float scale, softcap;
  int64_t most;   // tokens of the call
  bool fresh;     // memory holds nothing of this call yet
  float* memory;  // floats(head_dim, most), on a cache line; one for all parts that a thread runs
};
using PrefillKernel = void (*)(const PrefillPart&);

// What a kernel may use of memory: queries, outputs, one tile of keys and values, its scores.
constexpr int64_t prefill_floats(int64_t head_dim, int64_t /*most*/) {
  return 2 * kPrefillRows * (head_dim + 16) + 4 * kPrefillRows +
         2 * kPrefillKeys * (head_dim + 16) + 32 * kPrefillKeys;
}

// The same of kernels that keep rewritten keys and values, kPrefillKeys tokens a slot: as many as
// there are, two more than one call of them needs at a time, within kPrefillSlotBytes.
inline constexpr int64_t kPrefillSlotBytes = 8 << 20, kPrefillTagBytes = 320;
constexpr int64_t prefill_slot_bytes(int64_t head_dim) {
  return (head_dim + 31) / 32 * 32 * kPrefillKeys * 4;
}
constexpr int64_t prefill_slots(int64_t head_dim, int64_t most) {
  const int64_t all = (most + kPrefillKeys - 1) / kPrefillKeys;
  const int64_t held = kPrefillSlotBytes / prefill_slot_bytes(head_dim);
  return 2 + (all < held ? all : held);
}
constexpr int64_t prefill_tile_floats(int64_t head_dim, int64_t most) {
  return kPrefillRows * (prefill_slot_bytes(head_dim) / (4 * kPrefillKeys) * 3 / 2 + 18) +
         2 * (48 * kPrefillKeys + 48) +
         prefill_slots(head_dim, most) * (prefill_slot_bytes(head_dim) + kPrefillTagBytes) / 4 + 64;
}

// One line of kernels.def.
struct PrefillRow {
  const char* name;  // prefill_attention_<types>_<isa>, or _<isa> for all types
  IsaBits isa;
  bool bf16;  // takes bf16 queries, keys and values only; else all types
  int64_t (*floats)(int64_t head_dim, int64_t most);
  PrefillKernel run;
};

// All kernels, best first.
std::span<const PrefillRow> prefill_attention_kernels();

// First row that fits. Pure.
const PrefillRow& choose_prefill_attention(DType q_dtype, DType kv_dtype, IsaBits isa);

// Checks, chooses for this host and runs on the pool. The result does not depend on the number of
// threads.
Status prefill_attention(const PrefillArgs& args);

// The same by one kernel that takes the types: for tests and benchmarks.
Status prefill_attention_by(const PrefillRow& kernel, const PrefillArgs& args);

// In double; out [b, heads, queries, d] and lse are f64, 0 and -inf for queries left out.
Status prefill_attention_reference(const PrefillArgs& args, double* out, double* lse);

// Shapes and null pointers: what can be checked without reading an array, on any device.
Status check_prefill_call(const PrefillArgs& args);

// The same, and lists in range and in order.
Status check_prefill_attention(const PrefillArgs& args);

}  // namespace tamis
