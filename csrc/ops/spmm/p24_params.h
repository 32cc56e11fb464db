// What the p24 kernel gets, and the shared memory it and the plan agree on.
#pragma once

#include <cstdint>

#include "format/p24.h"
#include "ops/spmm/product_params.h"

namespace tamis {

inline constexpr int64_t kMaxP24Tokens = 16;
inline constexpr int32_t kMaxP24Warps = 24;   // of a block, by registers of a thread
inline constexpr int32_t kMaxP24Cluster = 8;  // blocks, which every device takes

inline constexpr int32_t kP24ChunkCols = 4;  // of 8 tokens of x, that a lane copies at a time

// Shared memory of a block: the flag of the last block, then x of a panel [token tiles, columns, 8
// tokens], over which warps add up.
inline constexpr int32_t kP24FlagAt = 0;
inline constexpr int32_t kP24XAt = 16;

// tickets [blocks of row tiles], partial [panels, row tiles, 4 * token tiles, 32].
struct SpmmP24Params : ProductParams {
  int32_t row_tiles = 0, panels = 0, panel_cols = 0;
  int32_t block_tiles = 0, warps = 0;  // row tiles of a block; warps of a row tile
  int32_t block_warps = 0;             // of a block, some of which may only copy x
  bool cluster = false;                // the panels of a row tile are
};

// The plan with that many row tiles a block, and warps a row tile; and with warps that only copy x
// where that saves a round of copying, up to most_warps of a block.
SpmmT16Plan lay_out_spmm_p24(const T16View& w, int64_t m, int32_t block_tiles, int32_t warps,
                             bool cluster = false, int32_t most_warps = 1);

SpmmP24Params spmm_p24_params(const SpmmCudaArgs& args, const SpmmT16Plan& plan);

}  // namespace tamis
