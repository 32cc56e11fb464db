// What the d24 product gets, p24's parameters, and the blocks that its plan makes.
#pragma once

#include <cstdint>

#include "format/d24.h"
#include "ops/spmm/p24_params.h"

namespace tamis {

inline constexpr int64_t kMaxD24Tokens = 64;
inline constexpr int32_t kD24Warps = 12;  // of a block, by registers of a thread
inline constexpr int32_t kMostD24WarpsOfPair = 8;
inline constexpr int32_t kFewestD24TokenTiles = 5;  // that a kernel is made for

constexpr int32_t d24_token_tiles(int64_t tokens) {
  const int32_t tiles = p24_token_tiles(tokens);
  return tiles < kFewestD24TokenTiles ? kFewestD24TokenTiles : tiles;
}

// The plan with that many row pairs a block, and warps a pair, of as many panels as the weight has.
SpmmT16Plan lay_out_spmm_d24(const T16View& w, int64_t m, int32_t block_pairs, int32_t warps);

// Row pairs are its row tiles, panels its parts. partial [panels, row pairs, 2 * token tiles, 32,
// 4] and a ticket a row pair.
SpmmP24Params spmm_d24_params(const SpmmCudaArgs& args, const SpmmT16Plan& plan);

ExpandP24Params expand_d24_params(const T16View& w, void* out, int64_t out_stride);

}  // namespace tamis
