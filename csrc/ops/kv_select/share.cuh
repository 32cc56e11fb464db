// kv_select by top_p: the fewest units whose scores, as whole numbers (share.h), reach a share of
// all; the lists of the CPU. One block a head. Three rounds narrow the range of bits in which the
// last of them lies, 2048 equal steps each: what a step holds is added up in three words of shared
// memory, as no sum of a third of each number's bits overflows one, so integers meet in any order.
// Steps over the bits of the scores that are there, not digits: attention spans few exponents, and
// a warp's scores would meet at one address. Then the units are listed as by a budget.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_select/select.cuh"
#include "ops/kv_select/share.h"

namespace tamis {

// Shared memory: that of a choice by budget, then sums of steps by third of their bits, and sums of
// warps.
inline constexpr uint32_t kShareSteps = 2 * kSelectThreads;
inline constexpr uint32_t kShareSumsAt = (kSelectShared + 15) / 16 * 16;
inline constexpr uint32_t kShareWarpsAt = kShareSumsAt + 3 * 4 * kShareSteps;
inline constexpr uint32_t kShareStateAt = kShareWarpsAt + 8 * kSelectWarps;
inline constexpr uint32_t kShareShared = kShareStateAt + 16;

TAMIS_DEVICE uint64_t shuffle_wide(uint64_t x, uint32_t lane) {
  const auto at = static_cast<int>(lane);
  const auto low = static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(x), at));
  const auto high = static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(x >> 32), at));
  return uint64_t{high} << 32 | low;
}

// What threads before this one have of `mine`, and all have.
TAMIS_DEVICE uint64_t share_before(uint64_t mine, uint64_t* all) {
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const auto through_lanes = [lane](uint64_t x) {
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
      const uint64_t other = shuffle_wide(x, lane >= distance ? lane - distance : lane);
      if (lane >= distance) x += other;
    }
    return x;
  };
  const uint64_t through = through_lanes(mine);
  if (lane == 31) {
    dev::store_shared<dev::Word2>(kShareWarpsAt + 8 * warp, {static_cast<uint32_t>(through),
                                                             static_cast<uint32_t>(through >> 32)});
  }
  dev::sync_block();
  const auto words = dev::load_shared<dev::Word2>(kShareWarpsAt + 8 * lane);
  const uint64_t theirs = uint64_t{words.y} << 32 | words.x, warps = through_lanes(theirs);
  *all = shuffle_wide(warps, 31);
  const uint64_t before = shuffle_wide(warps - theirs, warp);
  dev::sync_block();  // before the warps' numbers change
  return before + through - mine;
}

// The largest of the block's numbers.
TAMIS_DEVICE uint32_t largest_in_block(uint32_t x) {
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const auto join = [lane](uint32_t value) {
    for (uint32_t mask = 16; mask > 0; mask /= 2) {
      const auto other = static_cast<uint32_t>(
          dev::shuffle(static_cast<int32_t>(value), static_cast<int>(lane ^ mask)));
      value = other > value ? other : value;
    }
    return value;
  };
  x = join(x);
  if (lane == 0) dev::store_shared<uint32_t>(kShareWarpsAt + 4 * warp, x);
  dev::sync_block();
  const uint32_t all = join(dev::load_shared<uint32_t>(kShareWarpsAt + 4 * lane));
  dev::sync_block();
  return all;
}

struct ShareParams {
  KvSelectArgs args;
  int32_t room, third;  // share_room of the units; bits of a third
};

inline ShareParams share_params(const KvSelectArgs& a) {
  const int32_t room = share_room(a.units);
  return {a, room, (24 + room + 2) / 3};
}

// Scores of a head: bits of units [first, first + n), and which of them are forced.
struct ShareRange {
  const float* scores;
  int32_t begin, units, first, n;
  int32_t largest, room;

  TAMIS_DEVICE uint32_t bits(int32_t i) const {
    return dev::bits_of(dev::load_volatile(scores + i));
  }
  TAMIS_DEVICE uint64_t share(uint32_t x) const { return share_of(x, largest, room); }
  // Calls fn(bits) for every unit of [from, to), in this thread or another.
  template <class Fn>
  TAMIS_DEVICE void for_units(int32_t from, int32_t to, const Fn& fn) const {
    for (int32_t i = from + static_cast<int32_t>(dev::thread_index()); i < to;
         i += kSelectThreads) {
      fn(bits(i));
    }
  }
};

// The bits of the last score that is needed so that scores reach `wanted` > 0, and what is wanted
// of all that are equal to it. low, high: bits of those that have a share.
TAMIS_DEVICE uint32_t share_threshold(const ShareRange& r, int32_t third, uint32_t low,
                                      uint32_t high, uint64_t* wanted) {
  const uint32_t mask = (1u << third) - 1, thread = dev::thread_index();
  while (low < high) {
    const uint32_t width = (high - low) / kShareSteps + 1;  // of a step; the same in every thread
    for (uint32_t i = thread; i < 3 * kShareSteps; i += kSelectThreads) {
      dev::store_shared<uint32_t>(kShareSumsAt + 4 * i, 0);
    }
    dev::sync_block();
    r.for_units(r.first, r.first + r.n, [&](uint32_t bits) {
      if (bits < low || bits > high) return;
      const uint64_t share = r.share(bits);
      const uint32_t at = kShareSumsAt + 4 * ((bits - low) / width);
      dev::add_shared(at, static_cast<uint32_t>(share) & mask);
      dev::add_shared(at + 4 * kShareSteps, static_cast<uint32_t>(share >> third) & mask);
      dev::add_shared(at + 8 * kShareSteps, static_cast<uint32_t>(share >> third >> third));
    });
    dev::sync_block();
    const auto sum_of = [third](uint32_t step) {
      uint64_t sum = 0;
      for (uint32_t part = 0; part < 3; ++part) {
        sum += uint64_t{dev::load_shared<uint32_t>(kShareSumsAt + 4 * (part * kShareSteps + step))}
               << (part * static_cast<uint32_t>(third));
      }
      return sum;
    };
    const uint32_t top = kShareSteps - 1 - 2 * thread;
    const uint64_t first = sum_of(top), second = sum_of(top - 1);
    uint64_t all = 0;
    const uint64_t above = share_before(first + second, &all);
    if (above < *wanted && *wanted <= above + first + second) {
      const bool one = *wanted <= above + first;
      const uint64_t left = *wanted - above - (one ? 0 : first);
      dev::store_shared<dev::Word4>(
          kShareStateAt,
          {one ? top : top - 1, static_cast<uint32_t>(left), static_cast<uint32_t>(left >> 32), 0});
    }
    dev::sync_block();
    const auto found = dev::load_shared<dev::Word4>(kShareStateAt);
    *wanted = uint64_t{found.z} << 32 | found.y;
    const uint32_t from = low + found.x * width;
    high = width - 1 < high - from ? from + width - 1 : high;
    low = from;
    dev::sync_block();  // before the state changes again
  }
  return low;
}

// Grid [heads] of kSelectThreads. kOne: as select_units.
template <bool kOne>
TAMIS_DEVICE void select_share(const ShareParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const KvSelectArgs& a = p.args;
  const auto thread = static_cast<int32_t>(dev::thread_index());
  const int64_t head = dev::block_index_x();
  const SelectTask task(a, head);
  const auto units = static_cast<int32_t>(a.units);
  ShareRange r{.scores = a.scores + head * a.units,
               .begin = task.begin,
               .units = units,
               .first = task.begin + task.sink,
               .n = task.n,
               .largest = 1,
               .room = p.room};
  uint32_t most = 0;
  r.for_units(r.begin, units, [&](uint32_t bits) {
    if (has_share(bits) && bits > most) most = bits;
  });
  r.largest = share_exponent(largest_in_block(most));
  const int32_t middle_end = r.first + r.n;
  uint64_t mine = 0, forced = 0, middle = 0;
  uint32_t high = 0, low = ~0u;
  r.for_units(r.begin, r.first, [&](uint32_t bits) { mine += r.share(bits); });
  r.for_units(middle_end, units, [&](uint32_t bits) { mine += r.share(bits); });
  share_before(mine, &forced);
  mine = 0;
  r.for_units(r.first, middle_end, [&](uint32_t bits) {
    const uint64_t share = r.share(bits);
    if (share == 0) return;
    mine += share;
    high = bits > high ? bits : high;
    low = bits < low ? bits : low;
  });
  share_before(mine, &middle);
  high = largest_in_block(high);
  low = ~largest_in_block(~low);
  uint64_t wanted = share_wanted(a.top_p, forced + middle);
  wanted = wanted > forced ? wanted - forced : 0;
  int32_t k = 0;
  if (wanted > 0) {
    const uint32_t bits = share_threshold(r, p.third, low, high, &wanted);
    const uint64_t each = r.share(bits);
    const auto ties = static_cast<int32_t>((wanted + each - 1) / each);
    uint64_t above = 0;
    mine = 0;
    r.for_units(r.first, middle_end, [&](uint32_t x) { mine += has_share(x) && x > bits ? 1 : 0; });
    share_before(mine, &above);
    k = static_cast<int32_t>(above) + ties;
    const SelectRange range{r.scores, r.first, r.n};
    HeldScores<kOne && dev::kBulkCopies> held(range);
    list_chosen(held, dev::float_of(bits), ties, NobodyBefore{},
                [&](int32_t place, int32_t unit) { put_unit(a, head, task.sink + place, unit); });
  }
  for (int32_t i = thread; i < task.sink; i += kSelectThreads) {
    put_unit(a, head, i, task.begin + i);
  }
  for (int32_t i = thread; i < task.recent; i += kSelectThreads) {
    put_unit(a, head, task.sink + k + i, units - task.recent + i);
  }
  const int32_t listed = task.sink + k + task.recent;
  if (thread == 0) a.count[head] = listed * static_cast<int32_t>(a.page);
  if (a.page > 1) fill_pages(a, listed);
}

}  // namespace tamis
