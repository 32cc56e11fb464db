// Attention over chosen tokens in the launch that chooses them: what its kernel gets, and the
// shared memory that it and the host agree on.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/kv_select/choose_params.h"
#include "ops/sparse_attention/attention_params.h"

namespace tamis {

inline constexpr int32_t kChosenWarps = 16;  // of a block that read
// Of a thread of those, of the others, which settle candidates, and of both before: together all
// that an SM has.
inline constexpr int kChosenRegisters = 88, kSettleRegisters = 40, kChooseRegisters = 64;
inline constexpr int32_t kChosenOutputs = 520;  // 4 rows, of whose parts blocks round up theirs
inline constexpr int32_t kChosenTokens = 16;    // that a warp takes at a time: rows of a product

struct ChosenParams {
  ChooseParams choose;
  AttentionCudaParams attention;
  // Where rows of q, what blocks send each other, what warps list, bits of certain units and their
  // number, and the list lie in shared memory.
  int32_t query_at, parts_at, warps_at, sure_at, list_at;
};

// A row of q and four banks.
constexpr int32_t chosen_query_pitch(int32_t d) {
  return 2 * d + 16;
}

// Keys and values of a tile of each warp, over the scores.
constexpr int32_t chosen_ring(int32_t d) {
  return kChosenWarps * 2 * kChosenTokens * 2 * d;
}

// What a block keeps beside what choosing does.
inline ChosenParams chosen_params(ChooseParams choose, const AttentionCudaParams& attention,
                                  int32_t d) {
  choose.estimate.shared_at = std::max(choose.estimate.shared_at, kChooseScoresAt + chosen_ring(d));
  const int32_t query_at = (choose_shared(choose) + 15) / 16 * 16;
  const int32_t parts_at = query_at + kRowsPerTile * chosen_query_pitch(d);
  const int32_t warps_at = parts_at + 16 + kChooseBlocks * 8 * kChooseRows + 4 * kChosenOutputs;
  const int32_t sure_at = warps_at + 4 * (kChooseThreads / 32);
  return {.choose = choose,
          .attention = attention,
          .query_at = query_at,
          .parts_at = parts_at,
          .warps_at = warps_at,
          .sure_at = sure_at,
          .list_at = sure_at + kChooseUnits / 8 + 8};
}

inline int32_t chosen_shared(const ChosenParams& p) {
  return p.list_at + 2 * kChooseThreads * p.choose.turns;
}

}  // namespace tamis
