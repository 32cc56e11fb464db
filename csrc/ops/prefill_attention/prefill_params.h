// What the CUDA prefill kernels get, and the memory they and the host agree on.
#pragma once

#include "base/cuda/device.h"
#include "base/cuda/tensor_map.h"
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

// By warpgroups (prefill_wgmma.cuh), of which `groups` multiply, 64 queries each, and the last
// copies and keeps few registers.
inline constexpr int32_t kPrefillGroupKeys = 128;
inline constexpr int32_t kPrefillGroupStages = 3;
inline constexpr int64_t kPrefillMostWorks = int64_t{1} << 28;  // and what follows fits 32 bits

// n / d of 0 <= n < 2^31 as a product, quotient() of prefill_work.cuh; d from 1 to 2^31.
struct Divisor {
  uint32_t factor;  // 2^shift / d, rounded up
  uint32_t shift;   // 31 + log2 of d, rounded up: so what the factor is too large by does not count
};
constexpr Divisor divisor_of(int64_t d) {
  uint32_t shift = 31;
  while ((uint64_t{1} << shift) < static_cast<uint64_t>(d) << 31) ++shift;
  const auto wide = static_cast<uint64_t>(d);
  return {static_cast<uint32_t>(((uint64_t{1} << shift) + wide - 1) / wide), shift};
}

struct PrefillGroupParams {
  PrefillParams p;
  float factor;            // of scores, whose weights are powers of 2
  int32_t heads_of_block;  // 1, or 2 that share keys, values and pattern
  int32_t queries;         // of a tile of a head
  int32_t tiles;           // of queries
  int32_t together;        // batches times heads_of_blocks that take turns, of `all`
  int32_t works, blocks;   // all tiles of all heads, and blocks that take them
  // A block takes the work of its number, then whichever a ticket says, zero before and after;
  // null: every `blocks`th.
  uint32_t* ticket;
  Divisor by_section, by_together, by_blocks, by_heads, by_group, by_pattern;
  bool boxes;   // keys and values come as boxes of neighbouring tokens,
  bool packed;  // or of entries of columns, which a kernel before has packed
  // Queries come as boxes: where none are listed, and no blocks begin before them.
  bool query_boxed;
  TensorMap key_boxes = {}, value_boxes = {}, query_boxes = {};
};

inline constexpr int32_t kPrefillBoxTokens = 64;

// Shared memory of a block: queries, keys and values of its stages, lists of tokens with what their
// tile is, tokens of the queries, barriers.
constexpr int32_t prefill_group_shared(int32_t head_dim, int32_t groups) {
  return 2 * head_dim * (64 * groups + 2 * kPrefillGroupKeys * kPrefillGroupStages) +
         (kPrefillGroupStages + 1) * (4 * kPrefillGroupKeys + 16) + 4 * 64 * groups + 16 +
         8 * (4 * kPrefillGroupStages + 1) + 8;
}

// Few tokens of whole prompts (prefill_short.cuh), tiles of 64. The pieces, a tile's keys or its
// values, that a half of them has in shared memory at once: all, if there is room.
inline constexpr int32_t kPrefillShortKeys = 64;
inline constexpr int32_t kPrefillShortTiles = 8;          // at most
constexpr int32_t prefill_short_held(int32_t head_dim) {  // at most
  return head_dim == 64 ? kPrefillShortTiles : 5;
}
struct PrefillShortParams {
  PrefillParams p;
  float factor;       // as above
  int32_t tiles;      // of 64 queries of a head
  int32_t key_tiles;  // of all tokens
  int32_t held;       // pieces
  Divisor by_heads, by_group;
  TensorMap key_boxes = {}, value_boxes = {}, query_boxes = {};
};

// Shared memory of a block of `tiles` tiles of queries: barriers, what two warpgroups tell each
// other of their sums, then queries, keys and values.
inline constexpr int32_t kPrefillShortTold = 1024;  // bytes before it, for all barriers
constexpr int32_t prefill_short_queries_at(int32_t head_dim, int32_t tiles) {
  return kPrefillShortTold + 2 * tiles * 128 * (16 + head_dim);
}
constexpr int32_t prefill_short_shared(int32_t head_dim, int32_t tiles, int32_t held) {
  return prefill_short_queries_at(head_dim, tiles) + 128 * head_dim * (tiles + 2 * held);
}

// One, or two where fewer blocks then have a multiprocessor each.
int32_t prefill_short_tiles_of_block(const PrefillArgs& args, const CudaDevice& device);
int64_t prefill_short_blocks(const PrefillArgs& args, int32_t tiles);
// The boxes are the caller's to fill in.
PrefillShortParams prefill_short_params(const PrefillArgs& args);
PrefillGroupParams prefill_group_params(const PrefillArgs& args, const CudaDevice& device,
                                        int32_t groups);
HeadBoxes prefill_boxes(const PrefillArgs& args, const PrefillArray& x, int64_t heads,
                        int64_t rows);

// What packs listed tokens (prefill_pack.cuh) gets: keys and values, [b, kv_heads, columns.stride,
// d] each.
struct PrefillPackParams {
  PrefillParams p;
  uint8_t *keys, *values;
  int32_t kv_heads, row_bytes;
};
inline constexpr int32_t kPrefillPackRows = 32;  // of a block
inline constexpr int32_t kPrefillPackThreads = 256;

PrefillPackParams prefill_pack_params(const PrefillArgs& args);
// Those keys or values.
PrefillArray prefill_packed(const PrefillArgs& args, const uint8_t* data);

// `queries` of a head are a tile.
PrefillParams prefill_params(const PrefillArgs& args, int32_t queries);

// Tiles of queries of a head.
int32_t prefill_tiles(const PrefillArgs& args, int32_t queries);

}  // namespace tamis
