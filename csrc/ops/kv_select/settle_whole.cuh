// The k best of a head whose scores are whole (f32): units in steps above that of the k-th are
// among them, and those in its step, its candidates, few, go to all blocks of the cluster with
// their scores. How many there are in each block, the counts of the step have said, so that each
// has its place and nobody tells more.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_select/settle.cuh"

namespace tamis {

inline constexpr uint32_t kCandidatePairsAt = kChooseCandidatesAt;
static_assert(kChooseCandidateUnitsAt == kChooseCandidatesAt + 4 * kChooseCandidates,
              "a score and a unit beside each other");

// The candidates of a head, in all of its blocks' memory.
struct Candidates {
  uint32_t all, wanted;  // so many, of which so many are among the k best
  uint32_t first, own;   // of this block: their first place, their number

  TAMIS_DEVICE Candidates(const ChooseParams& p, uint32_t here, uint32_t wanted_of)
      : all(here), wanted(wanted_of) {
    const uint32_t block = dev::block_index_x(), from = kChooseToldAt + 4 * block;
    first = dev::load_shared<uint32_t>(from);
    const bool last = static_cast<int32_t>(block) + 1 == p.estimate.blocks;
    own = (last ? all : dev::load_shared<uint32_t>(from + 4)) - first;
  }
  // Counts those that are better than candidate i, ties to the lower unit: of all, and of the
  // block's own; for a warp.
  TAMIS_DEVICE void rank(uint32_t i, uint32_t lane, uint32_t* of_all, uint32_t* of_own) const {
    const auto mine = dev::load_shared<dev::Word2>(kCandidatePairsAt + 8 * i);
    uint32_t both = 0;
#pragma unroll 1
    for (uint32_t other = lane; other < all; other += 32) {
      const auto theirs = dev::load_shared<dev::Word2>(kCandidatePairsAt + 8 * other);
      const float a = dev::float_of(theirs.x), b = dev::float_of(mine.x);
      if (a > b || (a == b && theirs.y < mine.y)) both += other - first < own ? 0x10001u : 1u;
    }
#pragma unroll
    for (uint32_t mask = 1; mask < 32; mask *= 2) {
      both += static_cast<uint32_t>(
          dev::shuffle(static_cast<int32_t>(both), static_cast<int>(lane ^ mask)));
    }
    *of_all = both & 0xffff;
    *of_own = both >> 16;
  }
};

// Finds the k best: bits of those that this block has in kChooseTakenAt, or, for a reader, a list
// of their places; how many the blocks before have where there is no reader. x: scores by turn. A
// false answer, in every block: no step is found, or too many units lie in it.
template <class Bounds, class Steps, class Reader>
TAMIS_DEVICE bool settle_whole(const ChooseParams& p, const EstimatePlace& at,
                               const SelectTask& task, const ChooseHeld& s, const Digit& found,
                               const Bounds& bounds, const Steps& steps,
                               const float (&x)[Bounds::kTurns], Reader& reader, int32_t* before) {
  if (found.digit == 0 || found.here > kChooseCandidates) return false;
  const auto blocks = static_cast<uint32_t>(p.estimate.blocks), block = dev::block_index_x();
  const Candidates candidates(p, found.here, found.wanted);
  const bool sends = !Reader::kLists && blocks > 1;  // where there is a cluster
  if (at.thread == 0 && sends) dev::barrier_expect(kChooseSendingAt, 8 * candidates.all);
  uint32_t bits = 0;  // of the word that this lane holds
  uint32_t open = 0;  // turns in which this lane has a candidate
  s.template for_each_turn<Bounds::kTurns>([&](int turn) {
    const uint32_t step = steps.of(x[turn]);
    const uint32_t above = dev::ballot(step > found.digit);
    if (at.lane == static_cast<uint32_t>(turn)) bits = above;
    open |= step == found.digit ? 1u << turn : 0u;
  });
  // One after the other, a lane a block of the cluster.
  const auto send_candidates = [&] {
#pragma unroll 1
    for (uint32_t lanes = dev::ballot(open != 0); lanes != 0; lanes = dev::ballot(open != 0)) {
      const int32_t lane = dev::popcount((lanes & (0u - lanes)) - 1);
      const auto turns = static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(open), lane));
      if (at.lane == static_cast<uint32_t>(lane)) open &= open - 1;
      const int32_t turn = dev::popcount((turns & (0u - turns)) - 1);
      const int32_t place = s.place(turn) - static_cast<int32_t>(at.lane) + lane;
      uint32_t to = 0;
      if (at.lane == 0) to = dev::add_shared(kSentAt, 1);
      to =
          kCandidatePairsAt +
          8 * (candidates.first + static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(to), 0)));
      const dev::Word2 pair{dev::bits_of(bounds.score(place)),
                            static_cast<uint32_t>(at.first + place)};
      if (at.lane >= blocks) continue;
      if (sends) {
        dev::send_cluster(at.lane, to, pair, kChooseSendingAt);
      } else if (blocks > 1) {
        dev::store_cluster(at.lane, to, pair.x);
        dev::store_cluster(at.lane, to + 4, pair.y);
      } else {
        dev::store_shared<dev::Word2>(to, pair);
      }
    }
  };
  const uint32_t word = static_cast<uint32_t>(s.turns) * at.warp + at.lane;
  const bool has = static_cast<int32_t>(at.lane) < s.turns;
  if constexpr (Reader::kLists) {
    send_candidates();
    if (has) {
      dev::store_shared<uint32_t>(kChooseTakenAt + 4 * word, bits);
      dev::add_shared(kSureAt, static_cast<uint32_t>(dev::popcount(bits)));
    }
    dev::sync_block();
    if (at.thread < blocks) {
      dev::store_cluster(at.thread, kChooseBesideAt + 4 * block,
                         dev::load_shared<uint32_t>(kSureAt));
    }
    dev::sync_cluster();  // the last one: nobody reaches for another block after it
#pragma unroll 1
    for (uint32_t i = at.warp; i < candidates.all; i += ChooseHeld::kWarps) {
      uint32_t better = 0, own = 0;
      candidates.rank(i, at.lane, &better, &own);
      if (at.lane != 0 || better >= candidates.wanted) continue;
      const auto unit = dev::load_shared<int32_t>(kCandidatePairsAt + 8 * i + 4);
      if (unit < at.first) {
        dev::add_shared(kEarlierAt, 1);
      } else if (unit < at.last) {
        take_unit(unit - at.first);
      }
    }
    dev::sync_block();
    *before = dev::load_shared<int32_t>(kEarlierAt);
    for (uint32_t i = 0; i < block; ++i) {
      *before += dev::load_shared<int32_t>(kChooseBesideAt + 4 * i);
    }
  } else {
    bits = has ? reader.with_forced(at, task, word, bits) : 0;
    const uint32_t through = reader.count_bits(bits);
    send_candidates();
    const uint32_t listed = reader.list_bits(word, bits, through);  // behind a barrier
    if (sends) dev::barrier_wait(kChooseSendingAt, 0);
#pragma unroll 1
    for (uint32_t i = at.warp; i < candidates.own; i += ChooseHeld::kWarps) {
      uint32_t better = 0, own = 0;
      candidates.rank(candidates.first + i, at.lane, &better, &own);
      if (at.lane != 0 || better >= candidates.wanted) continue;
      const auto unit =
          dev::load_shared<int32_t>(kCandidatePairsAt + 8 * (candidates.first + i) + 4);
      reader.put(listed + own, unit - at.first);
      dev::add_shared(kKeptAt, 1);
    }
    dev::sync_block();
    reader.listed(static_cast<int32_t>(listed + dev::load_shared<uint32_t>(kKeptAt)));
  }
  return true;
}

}  // namespace tamis
