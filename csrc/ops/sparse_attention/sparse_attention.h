// sparse_attention: out[r] = sum_t p[r,t] * v[t], p = softmax_t(f(scale * q[r] . k[t]) + bias[t]),
// over the tokens of several segments of one KV cache, for a few query rows per KV head.
// f(s) = softcap * tanh(s / softcap), or s. All rows of a KV head see the same tokens: the h / g
// query heads of a group, or those of several new tokens whose cached past they all see.
#pragma once

#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "base/isa.h"
#include "base/status.h"
#include "format/kv_page.h"

namespace tamis {

enum class KvStorage : uint8_t { f32, f16, bf16, pages, lowrank_f32, lowrank_f16, lowrank_bf16 };

constexpr const char* name_of(KvStorage s) {
  constexpr const char* kNames[] = {"f32",         "f16",         "bf16",        "kv_page",
                                    "lowrank_f32", "lowrank_f16", "lowrank_bf16"};
  return kNames[static_cast<int>(s)];
}

// What the numbers of a dense or low-rank segment are.
constexpr KvStorage elements_of(KvStorage s) {
  return s == KvStorage::lowrank_f32    ? KvStorage::f32
         : s == KvStorage::lowrank_f16  ? KvStorage::f16
         : s == KvStorage::lowrank_bf16 ? KvStorage::bf16
                                        : s;
}

// Keys of KV head g as a product: token t's are coordinates[t] (`rank` numbers, the same for all
// heads) times basis[g], of which channels c and c + pairs then turn by t * frequency[c]. Angles
// are sums: of row t % kTurnFine of `turns` and of row kTurnFine + t / kTurnFine, so that the table
// stays small at any length.
// basis: [b, g, rank, d] contiguous, of the segment's elements. turns: [rows, 2, pairs], cosines
// and sines; null without pairs.
struct KvLowRank {
  int64_t rank = 0;
  const void* basis = nullptr;
  int64_t pairs = 0;
  const float* turns = nullptr;
};
inline constexpr int64_t kTurnFine = 64;

// Tokens that lie in one memory, the same number of slots for every batch b and KV head g. Several
// spans of one memory are several segments of it.
//
// Dense: keys, values [b, g, tokens, d], d contiguous, strides in elements. Pages: keys points to
// kv_page records [b, g, tokens / layout.tokens]; values and token strides are unused, the others
// are in bytes. Low rank: keys are the coordinates [b, tokens, rank], key_head_stride 0; values as
// in a dense segment.
//
// A unit is a token (dense) or a page. `index` [b, g, index_stride] lists the units to read; null
// reads units 0 .. of all tokens. `count` [b, g] says how many of them; null: index_stride or all.
// `begin` and `end` [b, g] drop tokens outside [begin, end), wherever they come from; those that a
// list starts with change no bit of the answer. `bias` [b, g, tokens] is added to the scaled
// scores.
struct KvSegment {
  KvStorage storage = KvStorage::f32;
  KvPageLayout layout = {};
  int64_t tokens = 0;
  const void* keys = nullptr;
  const void* values = nullptr;
  int64_t key_batch_stride = 0, key_head_stride = 0, key_token_stride = 0;
  int64_t value_batch_stride = 0, value_head_stride = 0, value_token_stride = 0;
  KvLowRank low_rank = {};
  const int32_t* index = nullptr;
  int64_t index_stride = 0;
  const int32_t* count = nullptr;
  const int32_t* begin = nullptr;
  const int32_t* end = nullptr;
  const float* bias = nullptr;
};

// q, out: [b, g, rows, d] of q_dtype, contiguous. lse: [b, g, rows] f32 or null: the logarithm of
// the sum of exponentials, -inf where no token is seen (out is then 0).
struct SparseAttentionArgs {
  DType q_dtype = DType::f32;
  int64_t batch = 0, kv_heads = 0, rows = 0, head_dim = 0;
  const void* q = nullptr;
  void* out = nullptr;
  float* lse = nullptr;
  float scale = 1.0f;
  float softcap = 0.0f;  // 0: none
  std::span<const KvSegment> segments;
};

inline constexpr int kMaxRows = 4;  // query rows that share one pass over the tokens

// What a kernel accumulates over units of one segment for up to kMaxRows rows: the largest score,
// the sum of exp(score - largest), and that sum weighted by values.
struct AttentionState {
  float largest[kMaxRows];
  float sum[kMaxRows];
  alignas(64) float weighted[kMaxRows][kKvMaxHeadDim];
};

// Units [unit_begin, unit_end) of one segment's list, for one batch and KV head.
struct AttentionPart {
  const KvSegment* segment;
  const float* q;  // [rows, d]
  int64_t rows, head_dim;
  float scale, softcap;
  const void* keys;    // of this batch and head
  const void* values;  // the same
  const void* basis;   // low rank: of this batch and head
  const int32_t* index;
  const float* bias;
  int64_t begin, end;  // tokens that count
  int64_t unit_begin, unit_end;
};

// Overwrites the state.
using AttentionKernel = void (*)(const AttentionPart&, AttentionState*);

// One line of kernels.def.
struct AttentionRow {
  const char* name;  // sparse_attention_<storage>_<q dtype>_<isa>
  KvStorage storage;
  DType q_dtype;  // bf16: products of bf16, q as given; f32: any q, products in f32
  IsaBits isa;
  AttentionKernel run;
};

// All kernels, best first within a storage.
std::span<const AttentionRow> sparse_attention_kernels();

// First row that fits and is not slow there (without_slow_bf16); null if none. Pure.
const AttentionRow* choose_sparse_attention(KvStorage storage, DType q_dtype, IsaBits isa);

// Checks, chooses for this host and runs on the pool. The result does not depend on the number of
// threads.
Status sparse_attention(const SparseAttentionArgs& args);

// The same with the kernels of one ISA level: for tests and benchmarks.
Status sparse_attention_on(IsaBits isa, const SparseAttentionArgs& args);

// In double, from unpacked pages; out and lse are f64.
Status sparse_attention_reference(const SparseAttentionArgs& args, double* out, double* lse);

}  // namespace tamis
