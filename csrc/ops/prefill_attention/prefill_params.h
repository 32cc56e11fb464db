// What the CUDA prefill kernels get, and the memory they and the host agree on.
#pragma once

#include "base/cuda/device.h"
#include "format/matrix.h"
#include "ops/prefill_attention/prefill_cuda.h"

namespace tamis {

inline constexpr int32_t kPrefillWarps = 4;
inline constexpr int32_t kPrefillThreads = 32 * kPrefillWarps;
inline constexpr int32_t kPrefillStages = 2;

struct PrefillParams {
  const uint8_t *q, *keys, *values;  // strides in bytes
  uint8_t* out;
  float* lse;
  int64_t q_batch, q_head, q_token;
  int64_t key_batch, key_head, key_token;
  int64_t value_batch, value_head, value_token;
  int64_t out_batch, out_head, out_token;
  int32_t heads, group, queries, tokens, first;  // group: query heads of a KV head
  float scale, softcap;
  bool causal;
  const int32_t* begin;
  int32_t pattern_group;  // query heads of a pattern head
  const int32_t *sink, *window;
  int32_t block;        // tokens; 0: no blocks
  int32_t blocks;       // of tokens
  int32_t block_tiles;  // tiles of queries in a block
  const int32_t *offsets, *block_columns;
  int32_t block_stride;
  const int32_t *rows, *row_count, *columns, *column_count;
  int32_t row_stride, column_stride;
};

// Shared memory of a block of `queries` queries: their tokens, the listed tokens of the tiles that
// are held, the first and last of the former, then queries, keys and values.
inline constexpr int32_t kPrefillLimits = 256;  // bytes, rows of keys lie on multiples of them
constexpr int32_t prefill_queries_at(int32_t queries) {
  return 4 * queries + 4 * kPrefillKeys * kPrefillStages + kPrefillLimits;
}
constexpr int32_t prefill_shared(int32_t queries, int32_t head_dim) {
  return prefill_queries_at(queries) + 2 * head_dim * (queries + 2 * kPrefillStages * kPrefillKeys);
}

PrefillParams prefill_params(const PrefillArgs& args, int32_t queries);

// Tiles of queries of a head.
int32_t prefill_tiles(const PrefillArgs& args, int32_t queries);

}  // namespace tamis
