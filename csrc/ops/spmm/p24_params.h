// What the p24 kernel gets, and the shared memory it and the plan agree on.
#pragma once

#include <cstdint>

#include "format/p24.h"
#include "ops/spmm/product_params.h"

namespace tamis {

inline constexpr int64_t kMaxP24Tokens = 64;         // 48 of halves of panels of 4096 columns
inline constexpr int32_t kMaxP24Warps = 24;          // of a block, by registers of a thread
constexpr int32_t p24_token_tiles(int64_t tokens) {  // of 8, as many as a kernel is made for
  const auto tiles = static_cast<int32_t>((tokens + 7) / 8);
  return tiles == 7 ? 8 : tiles;
}
constexpr bool takes_p24_halves(int32_t token_tiles) {  // of fewer, sm_90 holds whole panels
  return token_tiles > 3;
}
constexpr int32_t most_p24_warps(int32_t token_tiles) {
  return token_tiles > 4 ? 16 : kMaxP24Warps;
}

inline constexpr int32_t kP24ChunkCols = 4;  // of 8 tokens of x, that a lane copies at a time

// Columns that a barrier says are there, after the first ones.
inline constexpr int32_t kP24StageCols = 256;

// Shared memory of a block: the flag of the last block, or the barrier of the sums that a block of
// a cluster adds up; barriers of stages of x; then x of a panel [token tiles, columns, 8 tokens],
// then a cluster's sums [those of this block, parts, 32, 4], then what warps add up [warps, token
// tiles, 32, 4]; or these over x where there is no room, and of halves those of the cluster beyond.
inline constexpr int32_t kP24FlagAt = 0;
inline constexpr int32_t kP24BarrierAt = 0;
inline constexpr int32_t kP24StagesAt = 16;
inline constexpr int32_t kP24XAt =
    kP24StagesAt + 8 * static_cast<int32_t>(p24::kMaxPanelCols / kP24StageCols);

// tickets [blocks of row tiles], partial [parts, row tiles, token tiles, 32, 4].
struct SpmmP24Params : ProductParams {
  int32_t row_tiles = 0, panel_cols = 0;
  int32_t parts = 0, shares = 1;       // of k, blocks over them: panels, or two halves of each
  int32_t part_halves = 1;             // halves of a panel that a part has, in offsets
  int32_t part_cols = 0;               // columns of x that a block has room for
  int32_t half_begin = 0;              // first column of a panel's second half
  int32_t block_tiles = 0, warps = 0;  // row tiles of a block; warps of a row tile
  int32_t block_warps = 0;             // of a block, some of which may only copy x
  bool turns = false;                  // warps take its records in turns, not a share each
  int32_t first_cols = 0;              // of a panel, copied before anything is multiplied
  bool cluster = false;                // the parts of a row tile are
  int32_t warp_sums_at = 0;            // what warps of a row tile add up: over x, or behind it
  int32_t sums_at = 0;                 // what they send each other
  bool sums_over_x = false;            // which lies over x
};

// Most tokens of which sm_90 holds x of a panel in shared memory, or of half of a wide one.
constexpr int64_t most_p24_tokens(int64_t rows, int64_t cols) {
  const int64_t width = p24::panel_cols(cols, p24::panels_of(rows, cols));
  const int64_t held = p24::halves_of(width) > 1 ? p24::half_end(width) : width;
  const int64_t tiles = (227 * 1024 - kP24XAt) / (p24::kColumnBytes * held);
  return tiles >= 8 ? kMaxP24Tokens : tiles == 7 ? 48 : 8 * tiles;
}

// The plan with that many row tiles a block, and warps a row tile; and with warps that only copy x
// where that saves a round of copying, up to most_warps of a block. With first_cols, a multiple of
// chunks, and 9 to 16 tokens most_warps of a block: those that do not multiply copy the columns
// after them meanwhile. shares: blocks of a panel, one or its halves. room: shared memory of a
// block, for sums that need not wait until nobody reads x.
SpmmCudaPlan lay_out_spmm_p24(const PackedView& w, int64_t m, int32_t block_tiles, int32_t warps,
                              bool cluster = false, int32_t most_warps = 1, int32_t first_cols = 0,
                              int32_t shares = 1, int64_t room = 0);

SpmmP24Params spmm_p24_params(const SpmmCudaArgs& args, const SpmmCudaPlan& plan);

// Writing it out: warps of a block, and what it has of 8 rows in shared memory.
inline constexpr int32_t kP24ExpandWarps = 16;
constexpr int64_t p24_expand_bytes(int64_t panel_cols) {
  return 8 * (2 * panel_cols + 16);
}

struct ExpandP24Params {
  const uint8_t* records;
  const uint32_t* offsets;
  uint16_t* out;
  int64_t out_stride;
  int32_t rows, cols, panels, panel_cols;
  int32_t halves;      // of a panel, in offsets
  uint32_t row_bytes;  // from one of a block's rows to the next, in shared memory
  bool out_aligned;    // its rows, to 16 bytes
};

ExpandP24Params expand_p24_params(const PackedView& w, void* out, int64_t out_stride);

}  // namespace tamis
