// kv_select: the k largest of n scores exactly, ties to the lower unit, ascending. One block a
// head; a thread holds 32 scores in registers, so up to 32768 are read once (more: again by every
// pass, in chunks). A count over 2047 equal steps from the smallest to the largest score finds the
// step of the k-th, whose few scores are compared with each other. Where a step holds more than a
// thousand (many equal scores, or one far from all others): a radix over the ordered bits of f32,
// digits of 11, 11 and 10 bits. Then each warp lists its share of the units, in order, by ballots.
// Instructions of the one SM are what bounds it. Steps of equal width spread scores over addresses
// that a warp counts at; exponents do not, log weights of a long context mostly share one (41 us
// for 32768 units on an H200 with the radix alone). NaN counts as -inf; -0 equals +0. Tried: scores
// in shared memory, 110 instructions a score in all, 21 us; unrolled writes of pages, 14000
// instructions, 21 us too (bench/results/gpu.md).
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_select/kv_select_cuda.h"

namespace tamis {

inline constexpr uint32_t kDigitBits = 11;
inline constexpr uint32_t kSelectWarps = kSelectThreads / 32;
inline constexpr uint32_t kCandidates = kSelectThreads;

inline constexpr int kSelectHeld = 32;  // scores of a thread
inline constexpr int64_t kSelectAtOnce = int64_t{kSelectHeld} * kSelectThreads;

// Shared memory of a block: counts of digits; a few words; two numbers a warp; candidates.
inline constexpr uint32_t kCountsAt = 0;
inline constexpr uint32_t kStateAt = 4u << kDigitBits;
inline constexpr uint32_t kWarpsAt = kStateAt + 16;
inline constexpr uint32_t kCandidatesAt = kWarpsAt + 8 * kSelectWarps;
inline constexpr uint32_t kSelectShared = kCandidatesAt + 4 * kCandidates;

struct SelectParams {
  KvSelectArgs args;
};

inline constexpr float kSelectNever = -__builtin_inff();

TAMIS_DEVICE float clean_score(float x) {
  return x == x ? x : kSelectNever;
}
TAMIS_DEVICE uint32_t ordered_bits(float x) {
  const uint32_t bits = dev::bits_of(dev::add(x, 0.0f));  // -0 + 0 = +0
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
TAMIS_DEVICE float from_ordered(uint32_t bits) {
  return dev::float_of(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

// Units [first, first + n) of a head, less those that are forced.
struct SelectRange {
  const float* scores;
  int32_t first, n;

  TAMIS_DEVICE float score(int32_t i) const {
    return clean_score(dev::load_volatile(scores + first + i));
  }
};

// A chunk of a range in registers: warp w has 32 * turns neighbours, lane l of turn j the one at
// 32 * (turns * w + j) + l; -inf beyond the end. kOne: the only chunk, loaded once.
template <bool kOne, int kThreads = kSelectThreads>
struct HeldScores {
  static constexpr int kHeld = kOne ? kSelectHeld : kSelectHeld / 2;
  static constexpr int32_t kChunk = kHeld * kThreads;
  static constexpr uint32_t kWarps = kThreads / 32, kCounts = kCountsAt, kWarpSums = kWarpsAt;
  static constexpr bool kChunks = !kOne, kBlocks = false;
  static constexpr int kAtOnce = 4;  // turns come in fours
  const SelectRange& range;
  int32_t begin = 0, turns = 0;  // of the chunk
  float x[kHeld];

  TAMIS_DEVICE explicit HeldScores(const SelectRange& range_of) : range(range_of) {
    if constexpr (kOne) load(0);
  }

  TAMIS_DEVICE float score(int turn) const { return x[turn]; }
  TAMIS_DEVICE int32_t place(int turn) const {
    const auto warp = static_cast<int32_t>(dev::thread_index() / 32);
    return begin + 32 * (turns * warp + turn) + static_cast<int32_t>(dev::thread_index() % 32);
  }
  TAMIS_DEVICE void load(int32_t from) {
    const int32_t left = range.n - from;
    begin = from;
    constexpr int32_t kRound = kAtOnce * kThreads;
    turns = left < kChunk ? kAtOnce * ((left + kRound - 1) / kRound) : kHeld;
    const int32_t i = place(0), there = (range.n - i + 31) / 32;  // turns that this lane has
    const float* mine = range.scores + (range.first + i);
    for_turns([&](int turn) {
      x[turn] = kSelectNever;
      if (turn < there) x[turn] = dev::load_volatile(mine + 32 * turn);
    });
    for_turns([&](int turn) { x[turn] = clean_score(x[turn]); });
  }
  // Calls fn(turn) for every turn of the chunk.
  template <class Fn>
  TAMIS_DEVICE void for_turns(const Fn& fn) const {
#pragma unroll
    for (int turn = 0; turn < kHeld; turn += kAtOnce) {
      if (turn >= turns) break;  // the same in every thread
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) fn(turn + i);
    }
  }
  // Calls fn() with each chunk in registers, from the first to the last.
  template <class Fn>
  TAMIS_DEVICE void for_chunks(const Fn& fn) {
    if constexpr (kOne) {
      fn();
    } else {
      for (int32_t from = 0; from < range.n; from += kChunk) {
        load(from);
        fn();
      }
    }
  }
};

// What stands behind a count: the digit of the k-th largest, how many of the k belong to it, and
// how many there are of it.
struct Digit {
  uint32_t digit, wanted, here;
};

template <int kThreads>
TAMIS_DEVICE void clear_counts() {
  for (uint32_t i = dev::thread_index(); i < 1u << kDigitBits; i += kThreads) {
    dev::store_shared<uint32_t>(kCountsAt + 4 * i, 0);
  }
  dev::sync_block();
}

// The digit of the k-th, from the largest down; a thread looks at neighbours.
template <int kThreads>
TAMIS_DEVICE Digit find_digit(int32_t k) {
  constexpr uint32_t kPer = (1u << kDigitBits) / kThreads;
  static_assert(kPer * kThreads == 1u << kDigitBits && kPer % 2 == 0, "pairs of digits a thread");
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  dev::sync_block();  // everything is counted
  const uint32_t top = (1u << kDigitBits) - 1 - kPer * thread;
  uint32_t mine = 0;
#pragma unroll
  for (uint32_t i = 1; i < kPer; i += 2) {
    const auto pair = dev::load_shared<dev::Word2>(kCountsAt + 4 * (top - i));
    mine += pair.x + pair.y;
  }
  uint32_t through = mine;
  for (int distance = 1; distance < 32; distance *= 2) {
    through = dev::prefix_step(through, distance);
  }
  if (lane == 31) dev::store_shared<uint32_t>(kWarpsAt + 4 * warp, through);
  dev::sync_block();
  uint32_t before = lane < warp ? dev::load_shared<uint32_t>(kWarpsAt + 4 * lane) : 0;
  for (int distance = 1; distance < 32; distance *= 2) before = dev::prefix_step(before, distance);
  through += static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(before), 31));
  const auto wanted = static_cast<uint32_t>(k);
  uint32_t above = through - mine;
  if (above < wanted && wanted <= through) {
    uint32_t digit = top, here = dev::load_shared<uint32_t>(kCountsAt + 4 * digit);
    while (above + here < wanted) {
      above += here;
      here = dev::load_shared<uint32_t>(kCountsAt + 4 * --digit);
    }
    dev::store_shared<uint32_t>(kStateAt, digit);
    dev::store_shared<uint32_t>(kStateAt + 4, wanted - above);
    dev::store_shared<uint32_t>(kStateAt + 8, here);
  }
  dev::sync_block();
  const Digit found{dev::load_shared<uint32_t>(kStateAt), dev::load_shared<uint32_t>(kStateAt + 4),
                    dev::load_shared<uint32_t>(kStateAt + 8)};
  dev::sync_block();  // before the state changes again
  return found;
}

// The k-th largest of n, 0 < k < n, and how many equal ones belong to the k.
template <int kThreads>
TAMIS_DEVICE void radix_threshold(const SelectRange& s, int32_t k, float* threshold,
                                  int32_t* ties) {
  uint32_t prefix = 0;
  for (int pass = 0; pass < 3; ++pass) {
    const uint32_t shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, size = pass < 2 ? kDigitBits : 10;
    clear_counts<kThreads>();
    const uint32_t known = pass == 0 ? 0 : ~0u << (shift + size);
    for (auto i = static_cast<int32_t>(dev::thread_index()); i < s.n; i += kThreads) {
      const uint32_t bits = ordered_bits(s.score(i));
      if ((bits & known) == prefix) {
        dev::count_shared(kCountsAt + 4 * (bits >> shift & ((1u << size) - 1)));
      }
    }
    const Digit found = find_digit<kThreads>(k);
    prefix |= found.digit << shift;
    k = static_cast<int32_t>(found.wanted);
  }
  *threshold = from_ordered(prefix);
  *ties = k;
}

// Smallest and largest score above -inf, in every thread; none: low > high.
template <bool kOne, int kThreads>
TAMIS_DEVICE void find_range(HeldScores<kOne, kThreads>& s, float* low, float* high) {
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  float a = -kSelectNever, b = kSelectNever;
  s.for_chunks([&] {
    s.for_turns([&](int turn) {
      b = dev::max(b, s.x[turn]);
      a = s.x[turn] == kSelectNever ? a : -dev::max(-a, -s.x[turn]);
    });
  });
  const auto join = [&] {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
      a = -dev::max(-a, -dev::shuffle_xor(a, mask));
      b = dev::max(b, dev::shuffle_xor(b, mask));
    }
  };
  join();
  if (lane == 0) {
    dev::store_shared<float>(kWarpsAt + 8 * warp, a);
    dev::store_shared<float>(kWarpsAt + 8 * warp + 4, b);
  }
  dev::sync_block();
  if (kThreads == kSelectThreads || lane < kThreads / 32) {  // others have what they had
    a = dev::load_shared<float>(kWarpsAt + 8 * lane);
    b = dev::load_shared<float>(kWarpsAt + 8 * lane + 4);
  }
  join();
  *low = a;
  *high = b;
  dev::sync_block();
}

// The same as radix_threshold where the scores spread enough; false elsewhere.
template <bool kOne, int kThreads>
TAMIS_DEVICE bool linear_threshold(HeldScores<kOne, kThreads>& s, int32_t k, float* threshold,
                                   int32_t* ties) {
  float low, high;
  find_range(s, &low, &high);
  const float width = dev::add(high, -low);
  if (!(width > 0) || width > 3e38f) return false;
  // Rounded sums and products rise with x, so a larger score never has a smaller step; -inf has 0.
  // 2^23 + 1 leaves the step, 1 to 2046 for the others, in the low bits of the sum.
  const float scale = dev::divide(2045.0f, width);
  const auto step_of = [&](float x) {
    const float steps = dev::max(dev::mul(dev::add(x, -low), scale), -1.0f);
    return dev::bits_of(dev::add(steps, 8388609.0f)) - 0x4b000000u;
  };
  clear_counts<kThreads>();
  s.for_chunks([&] {
    s.for_turns([&](int turn) { dev::count_shared(kCountsAt + 4 * step_of(s.x[turn])); });
  });
  const Digit found = find_digit<kThreads>(k);
  if (found.digit == 0 || found.here > kThreads) return false;
  if (dev::thread_index() == 0) dev::store_shared<uint32_t>(kStateAt, 0);
  dev::sync_block();
  s.for_chunks([&] {
    uint32_t hits = 0;  // turns of this thread; few
    s.for_turns([&](int turn) { hits |= step_of(s.x[turn]) == found.digit ? 1u << turn : 0u; });
    for (int turn = 0; hits != 0; ++turn, hits >>= 1) {
      if ((hits & 1) == 0) continue;
      const float x = s.range.score(s.place(turn));  // registers have no numbers
      dev::store_shared<float>(kCandidatesAt + 4 * dev::add_shared(kStateAt, 1), x);  // any order
    }
  });
  dev::sync_block();
  if (dev::thread_index() < found.here) {
    const auto mine = dev::load_shared<float>(kCandidatesAt + 4 * dev::thread_index());
    uint32_t above = 0, equal = 0;
    for (uint32_t i = 0; i < found.here; ++i) {
      const auto other = dev::load_shared<float>(kCandidatesAt + 4 * i);
      above += other > mine ? 1 : 0;
      equal += other == mine ? 1 : 0;
    }
    if (above < found.wanted && found.wanted <= above + equal) {  // all such threads say the same
      dev::store_shared<float>(kStateAt + 4, mine);
      dev::store_shared<uint32_t>(kStateAt + 8, found.wanted - above);
    }
  }
  dev::sync_block();
  *threshold = dev::load_shared<float>(kStateAt + 4);
  *ties = static_cast<int32_t>(dev::load_shared<uint32_t>(kStateAt + 8));
  return true;
}

// Sums over the warps' numbers, one a lane: of the low halves, of the high ones.
TAMIS_DEVICE void sum_over_warps(uint32_t theirs, uint32_t lane, int32_t (&all)[2]) {
  all[0] = static_cast<int32_t>(theirs & 0xffffu);
  all[1] = static_cast<int32_t>(theirs >> 16);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    all[0] += dev::shuffle(all[0], static_cast<int>(lane) ^ mask);
    all[1] += dev::shuffle(all[1], static_cast<int>(lane) ^ mask);
  }
}

// Chooses all scores above the threshold and the first `ties` equal to it: take(at, first, taken)
// gets the bits of 32 of them from `first` on, a lane, before which `at` are chosen.
// before(above, equal): what blocks in front of this one have of both, given this one's.
template <class Held, class Before, class Take>
TAMIS_DEVICE void take_chosen(Held& s, float threshold, int32_t ties, const Before& before,
                              const Take& take) {
  static_assert(Held::kHeld <= 32 && 8u * 32 * Held::kWarps <= 4u << kDigitBits,
                "a lane a turn, in the memory of counts");
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  int32_t listed = 0, met = 0;  // above and equal, in the chunks before
  s.for_chunks([&] {
    // Bits of all lanes by turn, handed over where the counts were: lane j takes turn j's.
    const uint32_t words = Held::kCounts + 8 * 32 * warp;
    s.for_turns([&](int turn) {
      const uint32_t more = dev::ballot(s.score(turn) > threshold);
      const uint32_t equal = dev::ballot(s.score(turn) == threshold);
      if (lane == 0) {
        dev::store_shared<dev::Word2>(words + 8 * static_cast<uint32_t>(turn), {more, equal});
      }
    });
    dev::sync_warp();
    dev::Word2 bits{0, 0};
    if (static_cast<int32_t>(lane) < s.turns) bits = dev::load_shared<dev::Word2>(words + 8 * lane);
    const uint32_t above = bits.x;
    uint32_t same = bits.y;
    const int32_t first = s.place(0) + 31 * static_cast<int32_t>(lane);  // of turn j
    const int32_t there = s.range.n - first;
    if (there < 32) same &= there > 0 ? (1u << there) - 1 : 0;
    // Of lanes up to this one, then of warps before: above, and equal in the high half.
    const auto mine = static_cast<uint32_t>(dev::popcount(above) | dev::popcount(same) << 16);
    uint32_t through = mine;
    for (int distance = 1; distance < 32; distance *= 2) {
      through = dev::prefix_step(through, distance);
    }
    if (lane == 31) dev::store_shared<uint32_t>(Held::kWarpSums + 4 * warp, through);
    dev::sync_block();
    const uint32_t theirs =
        lane < Held::kWarps ? dev::load_shared<uint32_t>(Held::kWarpSums + 4 * lane) : 0;
    if constexpr (Held::kBlocks) {
      int32_t all[2];
      sum_over_warps(theirs, lane, all);
      before(all, &listed, &met);
    }
    uint32_t places = lane < warp ? theirs & 0xffffu : 0, equals = lane < warp ? theirs >> 16 : 0;
    for (int distance = 1; distance < 32; distance *= 2) {
      places = dev::prefix_step(places, distance);
      equals = dev::prefix_step(equals, distance);
    }
    const auto last = [](uint32_t sums) { return dev::shuffle(static_cast<int32_t>(sums), 31); };
    const auto until = static_cast<int32_t>(through - mine);
    const int32_t seen = met + last(equals) + (until >> 16);
    const int32_t at = listed + last(places) + (until & 0xffff) + (seen < ties ? seen : ties);
    const int32_t wanted = ties - seen;
    if (wanted < dev::popcount(same)) {  // the lowest of them
      uint32_t chosen = 0;
      for (int32_t i = 0; i < wanted; ++i) {
        chosen |= same & (0u - same);
        same &= same - 1;
      }
      same = chosen;
    }
    if (static_cast<int32_t>(lane) < s.turns && there > 0) take(at, first, above | same);
    if constexpr (Held::kChunks) {
      dev::sync_block();  // before the warps' numbers change
      int32_t all[2];
      sum_over_warps(theirs, lane, all);
      listed += all[0];
      met += all[1];
    }
  });
}

// The same: put(place, unit) of each.
template <class Held, class Before, class Put>
TAMIS_DEVICE void list_chosen(Held& s, float threshold, int32_t ties, const Before& before,
                              const Put& put) {
  take_chosen(s, threshold, ties, before, [&](int32_t at, int32_t first, uint32_t taken) {
    for (; taken != 0; taken &= taken - 1) {
      const int lowest = dev::popcount((taken & (0u - taken)) - 1);
      put(at++, s.range.first + first + lowest);
    }
  });
}

// Calls list(scores, threshold, ties) for the k best.
template <bool kOne, int kThreads, class List>
TAMIS_DEVICE void choose(const SelectRange& range, int32_t k, const List& list) {
  HeldScores<kOne, kThreads> held(range);
  float threshold = 0;
  int32_t ties = 0;
  if (!linear_threshold(held, k, &threshold, &ties)) {
    radix_threshold<kThreads>(range, k, &threshold, &ties);
    if constexpr (kOne) held.load(0);  // rather than keeping registers until here
  }
  list(held, threshold, ties);
}

// What blocks in front of the only one have.
struct NobodyBefore {
  TAMIS_DEVICE void operator()(const int32_t (&)[2], int32_t*, int32_t*) const {}
};

// The other entries of `listed` pages, from the first ones, which the block wrote.
TAMIS_DEVICE void fill_pages(const KvSelectArgs& a, int32_t listed) {
  dev::sync_block();
  const auto page = static_cast<int32_t>(a.page);
  int32_t* index = a.index + dev::block_index_x() * a.index_stride;
  for (auto i = static_cast<int32_t>(dev::thread_index()); i < listed * page; i += kSelectThreads) {
    if (i % page != 0) index[i] = dev::load_volatile(index + i / page * page) + i % page;
  }
}

// What a block is to choose: k of n units from begin + sink on, beside those that are forced.
struct SelectTask {
  int32_t begin, sink, recent, n, k;

  TAMIS_DEVICE SelectTask(const KvSelectArgs& a, int64_t head) {
    const auto units = static_cast<int32_t>(a.units);
    begin = a.begin ? dev::load_volatile(a.begin + head) : 0;
    begin = begin < 0 ? 0 : begin < units ? begin : units;
    const int32_t all = units - begin;
    sink = a.sink < all ? static_cast<int32_t>(a.sink) : all;
    recent = a.recent < all - sink ? static_cast<int32_t>(a.recent) : all - sink;
    n = all - sink - recent;
    const int64_t budget = a.budget ? int64_t{dev::load_volatile(a.budget + head)} : a.k;
    // Never written beyond; ids have 32 bits. Every warp waits for a division, longer for 64 bits.
    const auto stride =
        static_cast<uint32_t>(a.index_stride < INT32_MAX ? a.index_stride : INT32_MAX);
    const uint32_t room = a.page == 1 ? stride : stride / static_cast<uint32_t>(a.page);
    int64_t wanted = (budget < room ? budget : room) - sink - recent;
    wanted = wanted < 0 ? 0 : wanted < n ? wanted : n;
    k = static_cast<int32_t>(wanted);
  }
};

// The first entry of listed unit `place`; fill_pages writes the others, so that what lists stays
// small: the instruction cache is what a longer program waits for.
TAMIS_DEVICE void put_unit(const KvSelectArgs& a, int64_t head, int32_t place, int32_t unit) {
  const auto page = static_cast<int32_t>(a.page);
  a.index[head * a.index_stride + int64_t{place} * page] = unit * page;
}

// Grid [heads] of kSelectThreads. kOne: for at most kSelectAtOnce units, which before sm_90 come in
// chunks all the same: its compiler needs more registers for them than there are.
template <bool kOne>
TAMIS_DEVICE void select_units(const SelectParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const KvSelectArgs& a = p.args;
  const auto thread = static_cast<int32_t>(dev::thread_index());
  const int64_t head = dev::block_index_x();
  {
    const SelectTask task(a, head);
    if (task.k == task.n) {
      for (int32_t i = thread; i < task.n; i += kSelectThreads) {
        put_unit(a, head, task.sink + i, task.begin + task.sink + i);
      }
    } else if (task.k > 0) {
      const SelectRange range{a.scores + head * a.units, task.begin + task.sink, task.n};
      choose<kOne && dev::kBulkCopies, kSelectThreads>(
          range, task.k, [&](auto& held, float least, int32_t ties) {
            list_chosen(held, least, ties, NobodyBefore{}, [&](int32_t place, int32_t unit) {
              put_unit(a, head, task.sink + place, unit);
            });
          });
    }
  }
  const SelectTask task(a, head);  // again: registers are short before
  for (int32_t i = thread; i < task.sink; i += kSelectThreads) {
    put_unit(a, head, i, task.begin + i);
  }
  for (int32_t i = thread; i < task.recent; i += kSelectThreads) {
    put_unit(a, head, task.sink + task.k + i, static_cast<int32_t>(a.units) - task.recent + i);
  }
  const int32_t listed = task.sink + task.k + task.recent;
  if (thread == 0) a.count[head] = listed * static_cast<int32_t>(a.page);
  if (a.page > 1) fill_pages(a, listed);
}

}  // namespace tamis
