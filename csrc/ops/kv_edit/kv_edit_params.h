// What the kernels of kv_edit get on CUDA, and the memory they and the host agree on.
#pragma once

#include <cstdint>

#include "ops/kv_edit/kv_edit_cuda.h"
#include "ops/kv_select/row_tiles.h"

namespace tamis {

inline constexpr int32_t kMergeWarps = 8;  // of a block that joins tokens, each one kept token's
inline constexpr int32_t kMergeThreads = 32 * kMergeWarps;
inline constexpr int32_t kMergeEntries = 8;  // of the list of who joined whom, a thread at a time
inline constexpr int32_t kMergeChunk = kMergeThreads * kMergeEntries;
inline constexpr int32_t kMergeStages = 2;
inline constexpr int32_t kMergeSlots = 3;  // tiles whose tokens and lengths are known
inline constexpr int32_t kGatherThreads = 256;
inline constexpr int32_t kGatherHeld = 4;    // pieces that a thread of kv_gather has on their way
inline constexpr int32_t kGatherPieces = 4;  // of a row, at most, that a block moves

struct MergeParams {
  DType dtype;
  const uint8_t *keys, *values;
  int64_t key_head, key_token, value_head, value_token;  // bytes
  int32_t tokens, dim;
  int32_t row_bytes;  // in shared memory
  int32_t kinds;      // 1: keys alone say how like tokens are; 2: values too
  float tau;
  KvTokens kept, dropped;
  const float *weight, *mass;
  void *out_keys, *out_values;
  float* out_mass;
  int32_t* joined;
  float* scales;  // [heads, kept, then dropped, 2]: 1 over the length of key and value; 0 of zeros
};

// Shared memory of a block that compares: tokens and lengths of three tiles of kept ones, 64
// dropped rows of each kind, two tiles of kept rows.
inline constexpr int32_t kMergeLengthsAt = 4 * kMergeSlots * kTileStream;
inline constexpr int32_t kMergeRowsAt = kMergeLengthsAt + 8 * kMergeSlots * kTileStream;
static_assert(kMergeRowsAt % 128 == 0, "rows begin at the first bank");
constexpr int32_t merge_shared(int32_t kinds, int32_t row_bytes) {
  return kMergeRowsAt + (16 * kTileWarps * kinds + kMergeStages * kTileStream) * row_bytes;
}
// Of one that joins: how many entries each warp found, and the entries.
inline constexpr int32_t kMergeFoundAt = 4 * kMergeWarps;
inline constexpr int32_t kMergeJoinShared = kMergeFoundAt + 4 * kMergeChunk;

struct GatherParams {
  const uint8_t* x;
  uint8_t* out;
  int64_t head, token, out_head, out_token;  // bytes
  int32_t tokens;
  int32_t pieces;  // of a row
  int32_t slice;   // of them that a block moves
  KvTokens index;
};

MergeParams merge_params(const KvMergeArgs& args, void* workspace);

// Bytes of a piece: 16, 8, 4, 2 or 1, as the addresses allow.
int32_t gather_piece(const KvGatherArgs& args);
GatherParams gather_params(const KvGatherArgs& args);
// Whether rows close up in their own memory: a block then moves all rows of a head, in order.
bool gathers_in_place(const KvGatherArgs& args);
// Rows that a block moves at a time.
constexpr int32_t gather_rows_at_once(int32_t slice) {
  return kGatherThreads / slice * kGatherHeld;
}

}  // namespace tamis
