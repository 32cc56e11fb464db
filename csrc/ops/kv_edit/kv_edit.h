// kv_edit: which tokens of a KV cache stay, and what becomes of the others. Two functions:
//   kv_gather  out[h,i] = x[h, index[h,i]], also in place: each head's tokens close up
//   kv_merge   kept tokens, each the weighted mean of itself and the dropped tokens most like it
// Tokens that join share their weight with the token they join; one that resembles none enough
// falls to the zero class: it is evicted (EMS, arXiv:2412.08521, sec. 3.3).
// Similarities are products of kv_select's score kernels, so every ISA has them.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/isa.h"
#include "base/status.h"

namespace tamis {

// Tokens [heads, stride], ascending, the first count[h] of them; no count: stride.
struct KvTokens {
  const int32_t* index = nullptr;
  int64_t stride = 0;
  const int32_t* count = nullptr;
};

// x: [heads, tokens] of rows of row_bytes; out: [heads, index.stride] of such rows. In place if x
// and out are one array of the same strides. Rows past a head's count are not written.
struct KvGatherArgs {
  int64_t heads = 0, tokens = 0, row_bytes = 0;
  const void* x = nullptr;
  int64_t head_stride_bytes = 0, token_stride_bytes = 0;
  KvTokens index = {};
  void* out = nullptr;
  int64_t out_head_stride_bytes = 0, out_token_stride_bytes = 0;
};

// How like two tokens are.
enum class KvSimilarity : uint8_t {
  keys,         // cos(k, k')
  keys_values,  // cos(k, k') * cos(v, v') where both are above 0, else 0
};

// keys, values: [heads, tokens, d] of dtype, d contiguous, strides in elements. weight: [heads,
// tokens], 0 or more, what a token counts for in a mean; mass: [heads, tokens], how many tokens it
// stands for; null: 1. Dropped tokens join the kept one of largest similarity (the first of equals)
// if that exceeds tau.
// out_keys, out_values: [heads, kept.stride, d] of dtype, contiguous; out_keys null: keys are not
// merged. out_mass: [heads, kept.stride]; joined: [heads, dropped.stride], the place in `kept` that
// each dropped token joined, or -1; may be null.
struct KvMergeArgs {
  DType dtype = DType::f32;
  int64_t heads = 0, tokens = 0, head_dim = 0;
  const void *keys = nullptr, *values = nullptr;
  int64_t key_head_stride = 0, key_token_stride = 0;
  int64_t value_head_stride = 0, value_token_stride = 0;
  const float *weight = nullptr, *mass = nullptr;
  KvTokens kept = {}, dropped = {};
  KvSimilarity similarity = KvSimilarity::keys;
  float tau = 0.0f;
  void *out_keys = nullptr, *out_values = nullptr;
  float* out_mass = nullptr;
  int32_t* joined = nullptr;
};

// Check and run on the pool. No result depends on the number of threads.
Status kv_gather(const KvGatherArgs& args);
Status kv_merge(const KvMergeArgs& args);

// The same with the kernels of one ISA level: for tests.
Status kv_merge_on(IsaBits isa, const KvMergeArgs& args);

// In double; `joined` is an input, so that tokens as like as rounding can tell them compare alike:
// out arrays are f64. best: [heads, dropped.stride], each dropped token's largest similarity;
// chosen: that to the token which it joined, or 0.
Status kv_merge_reference(const KvMergeArgs& args, double* out_keys, double* out_values,
                          double* out_mass, double* best, double* chosen);

Status check_kv_gather(const KvGatherArgs& args);
Status check_kv_merge(const KvMergeArgs& args);
// All but what the lists name: they may lie where this cannot read.
Status check_kv_gather_arrays(const KvGatherArgs& args);
Status check_kv_merge_arrays(const KvMergeArgs& args);

}  // namespace tamis
