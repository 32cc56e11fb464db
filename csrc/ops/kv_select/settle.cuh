// Candidates of kv_choose: units whose scores of 16 bits do not say whether they are among the k
// best. They are scored again, exactly, sent to all blocks of the cluster and ranked there, by all
// warps or by some, while others go on: nobody else waits for it.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_select/choose_scores.cuh"

namespace tamis {

TAMIS_DEVICE void take_unit(int32_t place) {
  const auto of = static_cast<uint32_t>(place);
  dev::add_shared(kChooseTakenAt + 4 * (of / 32), 1u << of % 32);
}

// The threads that settle candidates: warps from kFirst on, which meet at a barrier of their own
// where they are not the whole block.
template <uint32_t kFirst, uint32_t kWarps, int kBarrier>
struct ChooseGroup {
  static constexpr uint32_t kThreads = 32 * kWarps;
  static constexpr bool kAll = kThreads == kChooseThreads;
  static TAMIS_DEVICE uint32_t thread() { return dev::thread_index() - 32 * kFirst; }
  static TAMIS_DEVICE void sync() {
    if constexpr (kAll) {
      dev::sync_block();
    } else {
      dev::sync_warp();
      dev::sync_warps<kBarrier, kThreads>();
    }
  }
};

// Finds out which candidates are among the k best of the head, and how many units the blocks before
// have; the bits are whole behind a barrier of Settlers. False, in every block, where 16 bits do
// not tell. Where others go on meanwhile, blocks send each other what they have, so that nobody but
// Settlers waits for it; where nobody does, they meet, which is sooner than sending and a meeting
// before a block ends.
template <int kRows, class Settlers>
TAMIS_DEVICE bool settle_candidates(const ChooseParams& p, const EstimatePlace& at, int32_t k,
                                    int32_t* before) {
  const uint32_t thread = dev::in_register(Settlers::thread()), lane = thread % 32;
  const uint32_t block = dev::block_index_x();
  const auto blocks = static_cast<uint32_t>(p.estimate.blocks);
  const uint32_t room = kChooseCandidates / blocks;
  const uint32_t kept = dev::load_shared<uint32_t>(kKeptAt), region = 4 * room * block;
  const bool sends_to_others = !Settlers::kAll && blocks > 1;  // where there is a cluster
  const auto send = [&](uint32_t other, uint32_t to, uint32_t value, uint32_t barrier) {
    if constexpr (Settlers::kAll) {
      dev::store_cluster(other, to, value);
    } else if (sends_to_others) {
      dev::send_cluster(other, to, value, barrier);
    } else {
      dev::store_shared<uint32_t>(to, value);
    }
  };
  if (thread == 0 && sends_to_others) dev::barrier_expect(kChooseTellingAt, 8 * blocks);
  if (kept <= room) {
    const auto edges = dev::load_shared<dev::Word4>(kChooseEdgesAt);
    const float low = dev::float_of(edges.x), high = dev::float_of(edges.y);
    // Lanes of a candidate: a row each, then blocks in turns.
    constexpr uint32_t kLanes = kRows;
    const uint32_t of = lane % kLanes;
    const auto row = static_cast<int32_t>(of) < p.estimate.args.rows ? static_cast<int32_t>(of) : 0;
#pragma unroll 1
    for (uint32_t start = thread / 32 * (32 / kLanes); start < kept;
         start += Settlers::kThreads / kLanes) {
      const uint32_t i = start + lane / kLanes;
      const auto place = dev::load_shared<int32_t>(kChooseKeptAt + 4 * (i < kept ? i : start));
      float x = ExactLabel(p, at, at.first + place).score(p, row);
#pragma unroll
      for (int mask = 1; mask < static_cast<int>(kLanes); mask *= 2) {
        x = dev::max(x, dev::shuffle_xor(x, mask));
      }
      x = clean_score(x);
      const float in_pairs = x + dev::float_of(edges.z);
      const bool better = i < kept && in_pairs > high,
                 sends = i < kept && !better && in_pairs >= low;
      uint32_t to = 0;
      if (of == 0 && better) {
        take_unit(place);
        dev::add_shared(kSureAt, 1);
      }
      if (of == 0 && sends) to = dev::add_shared(kSentAt, 1);
      to = region + 4 * static_cast<uint32_t>(
                            dev::shuffle(static_cast<int32_t>(to), static_cast<int>(lane - of)));
      if (!sends) continue;
#pragma unroll 1
      for (uint32_t other = of; other < blocks; other += kLanes) {
        send(other, kChooseCandidatesAt + to, dev::bits_of(x), kChooseSendingAt);
        send(other, kChooseCandidateUnitsAt + to, static_cast<uint32_t>(at.first + place),
             kChooseSendingAt);
      }
    }
  }
  Settlers::sync();
  if (thread < blocks) {
    const uint32_t to = kChooseToldAt + 8 * block;
    send(thread, to, dev::load_shared<uint32_t>(kSureAt), kChooseTellingAt);
    send(thread, to + 4, kept <= room ? dev::load_shared<uint32_t>(kSentAt) : kChooseMost,
         kChooseTellingAt);
  }
  if constexpr (Settlers::kAll) {
    dev::sync_cluster();  // the last one: nobody reaches for another block after it
  } else if (sends_to_others) {
    dev::barrier_wait(kChooseTellingAt, 0);  // by now nobody reads another block's counts
  } else {
    Settlers::sync();
  }
  // Where each block's candidates go among all, and what blocks before have taken: a lane a block.
  dev::Word2 told{0, 0};
  if (lane < blocks) told = dev::load_shared<dev::Word2>(kChooseToldAt + 8 * lane);
  const bool many = dev::ballot(told.y > room) != 0;
  if (told.y > room) told.y = 0;
  uint32_t taken = told.x, all = told.y;
  for (int distance = 1; distance < kChooseBlocks; distance *= 2) {
    taken = dev::prefix_step(taken, distance);
    all = dev::prefix_step(all, distance);
  }
  const auto of = [](uint32_t x, uint32_t from) {
    return static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(x), static_cast<int>(from)));
  };
  *before = static_cast<int32_t>(of(taken - told.x, block));
  const uint32_t from = of(all - told.y, thread % blocks), count = of(told.y, thread % blocks);
  taken = of(taken, blocks - 1);
  all = of(all, blocks - 1);
  if (sends_to_others) {
    if (thread == 0) dev::barrier_expect(kChooseSendingAt, 8 * all);
    dev::barrier_wait(kChooseSendingAt, 0);
  }
  const auto wanted = static_cast<uint32_t>(k) - taken;  // of the candidates
  if (many || wanted == 0 || wanted > all) return false;
  for (uint32_t i = thread / blocks; i < count; i += Settlers::kThreads / blocks) {
    const uint32_t region_of = 4 * (room * (thread % blocks) + i), to = 4 * (from + i);
    dev::store_shared<uint32_t>(kChooseRankedAt + to,
                                dev::load_shared<uint32_t>(kChooseCandidatesAt + region_of));
    dev::store_shared<uint32_t>(kChooseKeptAt + to,
                                dev::load_shared<uint32_t>(kChooseCandidateUnitsAt + region_of));
  }
  Settlers::sync();
  const auto score = [](uint32_t i) { return dev::load_shared<float>(kChooseRankedAt + 4 * i); };
  const auto unit_of = [](uint32_t i) { return dev::load_shared<int32_t>(kChooseKeptAt + 4 * i); };
  const auto take = [&](int32_t unit) {
    if (unit < at.first) {
      dev::add_shared(kEarlierAt, 1);
    } else if (unit < at.last) {
      take_unit(unit - at.first);
    }
  };
  // Eight lanes a candidate.
#pragma unroll 1
  for (uint32_t first = thread / 32 * 4; first < all; first += Settlers::kThreads / 8) {
    const uint32_t i = first + lane / 8;
    const float x = i < all ? score(i) : 0.0f;
    int32_t through = 0;  // those that are no smaller
#pragma unroll 4
    for (uint32_t other = lane % 8; other < all; other += 8) through += score(other) >= x ? 1 : 0;
#pragma unroll
    for (uint32_t mask = 1; mask < 8; mask *= 2) {
      through += dev::shuffle(through, static_cast<int>(lane ^ mask));
    }
    if (lane % 8 != 0 || i >= all) continue;
    if (through <= static_cast<int32_t>(wanted)) take(unit_of(i));
    if (through == static_cast<int32_t>(wanted)) dev::store_shared<uint32_t>(kMetAt, 1);
  }
  Settlers::sync();
  if (dev::load_shared<uint32_t>(kMetAt) == 0) {  // some of equal ones: the lowest units
#pragma unroll 1
    for (uint32_t mine = thread; mine < all; mine += Settlers::kThreads) {
      const float x = score(mine);
      uint32_t above = 0, through = 0, lower = 0;
      for (uint32_t i = 0; i < all; ++i) {
        above += score(i) > x ? 1 : 0;
        through += score(i) >= x ? 1 : 0;
        lower += score(i) == x && unit_of(i) < unit_of(mine) ? 1 : 0;
      }
      if (through > wanted && above + lower < wanted) take(unit_of(mine));
    }
    Settlers::sync();
  }
  *before += dev::load_shared<int32_t>(kEarlierAt);
  return true;
}

}  // namespace tamis
