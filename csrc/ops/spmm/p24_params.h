// What the p24 kernel gets, and the shared memory it and the plan agree on.
#pragma once

#include <cstdint>

#include "format/p24.h"
#include "ops/spmm/spmm_cuda.h"

namespace tamis {

inline constexpr int64_t kMaxP24Tokens = 16;
inline constexpr int32_t kMaxP24Warps = 24;   // of a block, by registers of a thread
inline constexpr int32_t kMaxP24Cluster = 8;  // blocks, which every device takes

// Shared memory of a block: the flag of the last block, then x of a panel [token tiles, columns, 8
// tokens], over which warps add up.
inline constexpr int32_t kP24FlagAt = 0;
inline constexpr int32_t kP24XAt = 16;

struct SpmmP24Params {
  const uint8_t* records;
  const uint32_t* offsets;
  const uint16_t* x;
  const uint16_t* bias;
  uint16_t* y;
  uint32_t* tickets;  // [blocks of row tiles]
  float* partial;     // [panels, row tiles, 4 * token tiles, 32]
  int64_t x_stride, y_stride;
  int32_t rows, cols, m;
  int32_t row_tiles, panels, panel_cols;
  int32_t block_tiles, warps;  // row tiles of a block; warps of a row tile
  bool cluster;                // the panels of a row tile are
  bool x_aligned;              // rows of x start at multiples of 16 bytes
};

// The plan with that many row tiles a block, and warps a row tile.
SpmmT16Plan lay_out_spmm_p24(const T16View& w, int64_t m, int32_t block_tiles, int32_t warps,
                             bool cluster = false);

SpmmP24Params spmm_p24_params(const SpmmCudaArgs& args, const SpmmT16Plan& plan);

}  // namespace tamis
