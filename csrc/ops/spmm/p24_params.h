// What the p24 kernel gets, and the shared memory it and the plan agree on.
#pragma once

#include <cstdint>

#include "format/p24.h"
#include "ops/spmm/product_params.h"

namespace tamis {

inline constexpr int64_t kMaxP24Tokens = 32;  // 24 of panels of more than 3624 columns
inline constexpr int32_t kMaxP24Warps = 24;   // of a block, by registers of a thread
inline constexpr int32_t kMaxP24Cluster = 8;  // blocks, which every device takes

inline constexpr int32_t kP24ChunkCols = 4;  // of 8 tokens of x, that a lane copies at a time

// Columns that a barrier says are there, after the first ones.
inline constexpr int32_t kP24StageCols = 256;

// Shared memory of a block: the flag of the last block, or the barrier of the sums that a block of
// a cluster adds up; barriers of stages of x; then x of a panel [token tiles, columns, 8 tokens],
// over which warps add up; then a cluster's sums [those of this block, panels, 32, 4].
inline constexpr int32_t kP24FlagAt = 0;
inline constexpr int32_t kP24BarrierAt = 0;
inline constexpr int32_t kP24StagesAt = 16;
inline constexpr int32_t kP24XAt =
    kP24StagesAt + 8 * static_cast<int32_t>(p24::kMaxPanelCols / kP24StageCols);

// tickets [blocks of row tiles], partial [panels, row tiles, 4 * token tiles, 32].
struct SpmmP24Params : ProductParams {
  int32_t row_tiles = 0, panels = 0, panel_cols = 0;
  int32_t block_tiles = 0, warps = 0;  // row tiles of a block; warps of a row tile
  int32_t block_warps = 0;             // of a block, some of which may only copy x
  bool turns = false;                  // warps take its records in turns, not a share each
  int32_t first_cols = 0;              // of a panel, copied before anything is multiplied
  bool cluster = false;                // the panels of a row tile are
  int32_t sums_at = 0;                 // what they send each other
};

// The plan with that many row tiles a block, and warps a row tile; and with warps that only copy x
// where that saves a round of copying, up to most_warps of a block. With first_cols, a multiple of
// chunks, and 9 to 16 tokens most_warps of a block: those that do not multiply copy the columns
// after them meanwhile.
SpmmT16Plan lay_out_spmm_p24(const T16View& w, int64_t m, int32_t block_tiles, int32_t warps,
                             bool cluster = false, int32_t most_warps = 1, int32_t first_cols = 0);

SpmmP24Params spmm_p24_params(const SpmmCudaArgs& args, const SpmmT16Plan& plan);

}  // namespace tamis
