// kv_gather: rows of bytes, a piece of a row a thread. In place a block moves some bytes of every
// row of a head, so many rows at a time, all read before one is written: what later rows are read
// from lies behind all that was written.   Needs: ascending lists, for rows in place.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_edit/kv_edit_params.h"

namespace tamis {

// Grid [slices of a row, heads, or with rows apart times blocks of rows in x] of kGatherThreads.
template <class Piece, bool kInPlace>
TAMIS_DEVICE void gather_pieces(const GatherParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const int64_t head = dev::block_index_y();
  const auto thread = static_cast<int32_t>(dev::thread_index());
  const auto x = static_cast<int32_t>(dev::block_index_x());
  const int32_t slices = (p.pieces + p.slice - 1) / p.slice;
  const int32_t rows = kGatherThreads / p.slice;  // side by side
  const int32_t piece = x % slices * p.slice + thread % p.slice;
  const bool moves = thread < rows * p.slice && piece < p.pieces;
  const auto most = static_cast<int32_t>(p.index.stride);
  int32_t count = p.index.count ? dev::load_volatile(p.index.count + head) : most;
  count = count < most ? count : most;
  const int32_t* index = p.index.index + head * p.index.stride;
  const uint8_t* from = p.x + head * p.head + piece * int64_t{sizeof(Piece)};
  uint8_t* to = p.out + head * p.out_head + piece * int64_t{sizeof(Piece)};
  int32_t first = kInPlace ? 0 : x / slices * rows * kGatherHeld;
  const int32_t end = kInPlace ? count : first + rows * kGatherHeld;
  for (; first < end; first += rows * kGatherHeld) {
    Piece held[kGatherHeld] = {};
    const int32_t mine = first + thread / p.slice;
#pragma unroll
    for (int k = 0; k < kGatherHeld; ++k) {
      const int32_t i = mine + k * rows;
      if (!moves || i >= count) continue;
      int32_t token = dev::load_volatile(index + i);
      token = token < 0 ? 0 : token < p.tokens ? token : p.tokens - 1;
      held[k] = dev::load_volatile(reinterpret_cast<const Piece*>(from + token * p.token));
    }
    if constexpr (kInPlace) dev::sync_block();
#pragma unroll
    for (int k = 0; k < kGatherHeld; ++k) {
      const int32_t i = mine + k * rows;
      if (moves && i < count) *reinterpret_cast<Piece*>(to + i * p.out_token) = held[k];
    }
  }
}

}  // namespace tamis
