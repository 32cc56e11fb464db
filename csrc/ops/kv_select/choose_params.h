// kv_choose: what its kernel gets, and the shared memory that it and the host agree on.
#pragma once

#include <cstdint>

#include "ops/kv_select/estimate_params.h"

namespace tamis {

inline constexpr int32_t kChooseThreads = 512;
inline constexpr int32_t kChooseHeld = 8;                              // units of a thread
inline constexpr int32_t kChooseBlocks = 16;                           // of a cluster at most
inline constexpr int32_t kChooseUnits = kChooseThreads * kChooseHeld;  // of a block
inline constexpr int32_t kChooseMost = 32768;                          // units of a head
inline constexpr int32_t kChooseChannels = 32;  // of labels: the k of one product of bytes
inline constexpr int32_t kChooseRows = 4;
inline constexpr int32_t kChooseCandidates = 256;

// Shared memory of a block: counts of steps; the same, two in a word, for the cluster; what a warp
// counts; what each row comes to; what each block of the cluster says of its candidates, then of
// what it lists; candidates of all blocks; the units' scores of each row, and what they come to;
// then what estimates need.
inline constexpr uint32_t kChooseSteps = 2 * kChooseThreads;
inline constexpr int32_t kChooseCountsAt = 0;
inline constexpr int32_t kChoosePairsAt = 4 * kChooseSteps;
inline constexpr int32_t kChooseWarpsAt = kChoosePairsAt + 2 * kChooseSteps;
inline constexpr int32_t kChooseStateAt = kChooseWarpsAt + 4 * 32;
inline constexpr int32_t kChooseStatsAt = kChooseStateAt + 16;  // largest, sum, smallest of a row
inline constexpr int32_t kChooseShiftsAt = kChooseStatsAt + 16 * kChooseRows;
inline constexpr int32_t kChooseFoundAt = kChooseShiftsAt + 16 * kChooseRows;
inline constexpr int32_t kChooseListedAt = kChooseFoundAt + 4 * kChooseBlocks;
inline constexpr int32_t kChoosePartsAt = kChooseListedAt + 8 * kChooseBlocks;
inline constexpr int32_t kChooseCandidatesAt =
    kChoosePartsAt + 16 * kChooseRows * (kChooseThreads / 32);
inline constexpr int32_t kChooseScoresAt =
    kChooseCandidatesAt + 4 * kChooseBlocks * kChooseCandidates;
static_assert(kChooseScoresAt % 16 == 0 && kChooseStatsAt % 16 == 0, "16 bytes at a time");

struct ChooseParams {
  EstimateParams estimate;  // blocks: of a cluster; span: units of a block; out may be null
  KvSelectArgs select;
  int32_t turns;  // of a thread over the block's units
};

constexpr int32_t choose_rows(int64_t rows) {  // that a kernel is made for
  return rows <= 1 ? 1 : kChooseRows;
}

ChooseParams choose_params(const KvEstimateArgs& estimate, const KvSelectArgs& select,
                           const CudaDevice& device);

int32_t choose_shared(const ChooseParams& p);

}  // namespace tamis
