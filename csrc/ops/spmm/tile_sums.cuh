// What products of 16-row tiles end with: sums of the blocks that share a tile, and y.
// Params: partial [blocks, row tiles, accumulators, 32], tickets, row_tiles, rows, m, bias, y,
// y_stride.
#pragma once

#include <cstdint>

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "base/cuda/ticket.h"

namespace tamis {

// Leaves this block's sums, of `blocks` that share its rows; true in the block that arrives last,
// with all of them added. flag_at: four bytes of shared memory that nothing else uses.
template <class Config, class Params>
TAMIS_DEVICE bool add_blocks(const Params& p, int32_t blocks, uint32_t flag_at, int32_t row_tile,
                             bool owner, uint32_t thread, float (&c)[Config::kTokenTiles][4]) {
  const auto sums = [&](int32_t block) {
    return p.partial + (int64_t{block} * p.row_tiles + row_tile) * Config::kAccumulators * 32 +
           thread % 32;
  };
  if (owner) {
    float* mine = sums(static_cast<int32_t>(dev::block_index_y()));
#pragma unroll
    for (int i = 0; i < Config::kAccumulators; ++i) {
      dev::store_volatile(mine + 32 * i, c[i / 4][i % 4]);
    }
  }
  if (!arrives_last(p.tickets + dev::block_index_x(), static_cast<uint32_t>(blocks), flag_at)) {
    return false;
  }
  if (!owner) return true;
#pragma unroll
  for (int i = 0; i < Config::kAccumulators; ++i) c[i / 4][i % 4] = 0;
  for (int32_t block = 0; block < blocks; ++block) {
    const float* theirs = sums(block);
#pragma unroll
    for (int i = 0; i < Config::kAccumulators; ++i) {
      c[i / 4][i % 4] += dev::load_volatile(theirs + 32 * i);
    }
  }
  return true;
}

// Rounds and writes the sums of 8 tokens, of a warp's 16 rows.
template <class Config, class Params>
TAMIS_DEVICE void write_sums(const Params& p, int32_t first_row, int32_t first_token, uint32_t lane,
                             const float (&c)[4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t row = first_row + static_cast<int32_t>(lane / 4) + 8 * half;
    if (row >= p.rows) continue;
    const float bias = p.bias ? widen<Config::kType>(dev::load_global(p.bias + row)) : 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t token = first_token + 2 * static_cast<int32_t>(lane % 4) + i;
      if (token < p.m) {
        p.y[token * p.y_stride + row] = narrow<Config::kType>(c[2 * half + i] + bias);
      }
    }
  }
}

// The same of one row tile.
template <class Config, class Params>
TAMIS_DEVICE void write_y(const Params& p, int32_t row_tile, uint32_t lane,
                          const float (&c)[Config::kTokenTiles][4]) {
#pragma unroll
  for (int t = 0; t < Config::kTokenTiles; ++t) {
    write_sums<Config>(p, 16 * row_tile, 8 * t, lane, c[t]);
  }
}

}  // namespace tamis
