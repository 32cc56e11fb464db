// kv_choose: what its kernel gets, and the shared memory that it and the host agree on.
#pragma once

#include <array>
#include <cstdint>

#include "ops/kv_select/estimate_params.h"

namespace tamis {

inline constexpr int32_t kChooseThreads = 1024;
inline constexpr int32_t kChooseHeld = 16;                             // units of a thread
inline constexpr int32_t kChooseBlocks = 8;                            // of a cluster at most
inline constexpr int32_t kChooseUnits = kChooseThreads * kChooseHeld;  // of a block
inline constexpr int32_t kChooseMost = kChooseBlocks * kChooseUnits;   // of a head
inline constexpr int32_t kChooseChannels = 32;      // of labels: the k of one product of bytes
inline constexpr int32_t kChooseRows = 8;           // of q at most
inline constexpr int32_t kChooseFewRows = 4;        // of which shared memory holds more units
inline constexpr int32_t kChooseCandidates = 1024;  // of a cluster

// Rows whose scores a unit keeps.
constexpr int32_t choose_rows(int64_t rows) {
  return rows <= kChooseFewRows ? kChooseFewRows : kChooseRows;
}
// Turns of a thread over units whose scores shared memory holds, in f32 or in 16 bits.
constexpr int32_t choose_turns(int32_t rows, bool whole) {
  if (rows == kChooseFewRows) return whole ? 11 : kChooseHeld;
  return whole ? 5 : 10;
}
// Units of a head.
constexpr int32_t choose_most(int32_t rows) {
  return kChooseBlocks * kChooseThreads * choose_turns(rows, false);
}
static_assert(choose_most(kChooseFewRows) == kChooseMost, "all that any head has");

// Shared memory of a block: counts of steps, then of what the block keeps (a bit a unit, then
// places, then units of all candidates); the counts, two in a word, for the cluster; what a warp
// counts; numbers of the block; what each row comes to; what each block of the cluster says; what a
// row comes to in each warp; candidates by block: scores, then units; scores of all candidates; the
// scores of four rows, eight bytes a unit or, where scores are whole, sixteen, and as much for four
// more; then what estimates need. Candidates whose scores are whole: pairs of a score and a unit,
// in place of those by block.
inline constexpr uint32_t kChooseSteps = 2 * kChooseThreads;
inline constexpr int32_t kChooseCountsAt = 0;
inline constexpr int32_t kChooseTakenAt = kChooseCountsAt;
inline constexpr int32_t kChooseKeptAt = kChooseTakenAt + kChooseUnits / 8;
inline constexpr int32_t kChoosePairsAt = 4 * kChooseSteps;
static_assert(kChooseKeptAt + 4 * kChooseCandidates <= kChoosePairsAt, "where the counts were");
inline constexpr int32_t kChooseWarpsAt = kChoosePairsAt + 2 * kChooseSteps;
inline constexpr int32_t kChooseStateAt = kChooseWarpsAt + 4 * 32;
inline constexpr int32_t kChooseSumsAt = kChooseStateAt + 16;
inline constexpr int32_t kChooseStatsAt = kChooseSumsAt + 32;  // largest, sum, smallest of a row
inline constexpr int32_t kChooseShiftsAt = kChooseStatsAt + 16 * kChooseRows;
// What each block says, twice as many numbers as blocks: how many it takes beside candidates, and
// candidates; where scores are whole, candidates of blocks before, then what each takes beside
// them.
inline constexpr int32_t kChooseToldAt = kChooseShiftsAt + 16 * kChooseRows;
inline constexpr int32_t kChooseBesideAt = kChooseToldAt + 4 * kChooseBlocks;
// Between which exact scores candidates lie, and what makes scores of 16 bits of those. Barriers:
// all blocks have told; all candidates are there; all is settled, by whoever settles it.
inline constexpr int32_t kChooseEdgesAt = kChooseToldAt + 8 * kChooseBlocks;
inline constexpr int32_t kChooseTellingAt = kChooseEdgesAt + 16;
inline constexpr int32_t kChooseSendingAt = kChooseTellingAt + 8;
inline constexpr int32_t kChooseSettledAt = kChooseSendingAt + 8;
inline constexpr int32_t kChoosePartsAt = kChooseSettledAt + 16;
inline constexpr int32_t kChooseCandidatesAt =
    kChoosePartsAt + 16 * kChooseRows * (kChooseThreads / 32);
inline constexpr int32_t kChooseCandidateUnitsAt = kChooseCandidatesAt + 4 * kChooseCandidates;
inline constexpr int32_t kChooseRankedAt = kChooseCandidateUnitsAt + 4 * kChooseCandidates;
// At a multiple of 128: tiles of keys and values that lie 64 beyond one take 5 % longer.
inline constexpr int32_t kChooseScoresAt =
    (kChooseRankedAt + 4 * kChooseCandidates + 127) / 128 * 128;
static_assert(kChooseScoresAt % 16 == 0 && kChooseStatsAt % 16 == 0 && kChoosePartsAt % 16 == 0 &&
                  kChooseEdgesAt % 16 == 0,
              "16 bytes at a time");

// How many clusters of 1, 2, ... blocks run at once.
using ChooseFit = std::array<int32_t, kChooseBlocks>;

struct ChooseParams {
  EstimateParams estimate;  // blocks: of a cluster; span: units of a block; out may be null
  KvSelectArgs select;
  int32_t turns;  // of a thread over the block's units
  bool whole;     // scores are held in f32, not in 16 bits
  // Of whole scores: units.data where the last unit's label is written first; else null.
  void* new_label = nullptr;
};

// Scores are whole where shared memory holds them and nobody says otherwise.
ChooseParams choose_params(const KvEstimateArgs& estimate, const KvSelectArgs& select,
                           const CudaDevice& device, const ChooseFit& fit,
                           bool may_be_whole = true);

// Bytes of shared memory that a unit's scores of four rows take.
template <bool kWhole>
inline constexpr int32_t kChooseUnitBytes = kWhole ? 16 : 8;

int32_t choose_shared(const ChooseParams& p);

}  // namespace tamis
