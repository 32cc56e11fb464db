// Attention over chosen tokens in the launch that chooses them: what its kernel gets, and the
// shared memory that it and the host agree on.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/kv_select/choose_params.h"
#include "ops/sparse_attention/attention_params.h"

namespace tamis {

// Warps of a block that read. Where scores are whole, nothing is left to settle for the others.
constexpr int32_t chosen_warps(bool whole) {
  return whole ? 20 : 16;
}
// Registers of a thread of those, of the others, which settle candidates or wait, and of both
// before: together all that an SM has.
inline constexpr int kChosenRegisters = 88, kChooseRegisters = 64;
template <bool kWhole>
inline constexpr int kOtherRegisters = kWhole ? 24 : 40;
inline constexpr int32_t kChosenTokens = 16;  // that a warp takes at a time: rows of a product

struct ChosenParams {
  ChooseParams choose;
  AttentionCudaParams attention;
  // Where rows of q, what blocks send each other, what warps list, bits of certain units and their
  // number, and the list lie in shared memory.
  int32_t query_at, parts_at, warps_at, sure_at, list_at;
  int32_t shared_bytes;  // of a block
};

// Outputs of which blocks round up their parts.
constexpr int32_t chosen_outputs(int32_t rows, int32_t d) {
  return rows * d + kChooseBlocks;
}

// A row of q and four banks.
constexpr int32_t chosen_query_pitch(int32_t d) {
  return 2 * d + 16;
}

// Keys and values of a tile of each warp, over the scores.
constexpr int32_t chosen_ring(bool whole, int32_t d) {
  return chosen_warps(whole) * 2 * kChosenTokens * 2 * d;
}

// What a block keeps beside what choosing does. Whole scores are done with when units are listed,
// so that the list lies over them, behind the tiles.
inline ChosenParams chosen_params(ChooseParams choose, const AttentionCudaParams& attention,
                                  int32_t d) {
  const int32_t ring_end = kChooseScoresAt + chosen_ring(choose.whole, d);
  const int32_t list = 2 * kChooseThreads * choose.turns;
  choose.estimate.shared_at =
      std::max(choose.estimate.shared_at, ring_end + (choose.whole ? list : 0));
  const int32_t query_at = (choose_shared(choose) + 15) / 16 * 16;
  const int32_t parts_at = query_at + kRowsPerTile * chosen_query_pitch(d);
  const int32_t rows = choose_rows(attention.rows);
  const int32_t warps_at = parts_at + 16 + kChooseBlocks * 8 * rows + 4 * chosen_outputs(rows, d);
  const int32_t sure_at = warps_at + 4 * (kChooseThreads / 32);
  const int32_t end = sure_at + kChooseUnits / 8 + 8;
  return {.choose = choose,
          .attention = attention,
          .query_at = query_at,
          .parts_at = parts_at,
          .warps_at = warps_at,
          .sure_at = sure_at,
          .list_at = choose.whole ? ring_end : end,
          .shared_bytes = choose.whole ? end : end + list};
}

}  // namespace tamis
