// kv_select: the k largest of n scores exactly, ties to the lower unit, ascending. One block a
// head. Where the scores fit in shared memory: a count over 2047 equal steps from the smallest to
// the largest score finds the step of the k-th, whose few scores are compared with each other.
// Where they do not, or a step holds more than a thousand (many equal scores, or one far from all
// others): a radix over the ordered bits of f32, digits of 11, 11 and 10 bits. Then each warp lists
// its share of the units, in order, by ballots. Four scores a thread and turn: instructions are
// what bounds it. Steps of equal width spread scores over addresses that a warp counts at;
// exponents do not, log weights of a long context mostly share one (41 us for 32768 units on an
// H200 with the radix alone). NaN counts as -inf; -0 equals +0.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_select/kv_select_cuda.h"

namespace tamis {

inline constexpr uint32_t kDigitBits = 11;
inline constexpr uint32_t kSelectWarps = kSelectThreads / 32;
inline constexpr uint32_t kCandidates = kSelectThreads;

// Shared memory of a block: counts of digits; a few words; two numbers a warp; candidates; scores.
inline constexpr uint32_t kCountsAt = 0;
inline constexpr uint32_t kStateAt = 4u << kDigitBits;
inline constexpr uint32_t kWarpsAt = kStateAt + 16;
inline constexpr uint32_t kCandidatesAt = kWarpsAt + 8 * kSelectWarps;
inline constexpr uint32_t kScoresAt = kCandidatesAt + 4 * kCandidates;

struct SelectParams {
  KvSelectArgs args;
  bool cached;  // scores lie in shared memory
};

constexpr int64_t select_shared(int64_t units) {
  return kScoresAt + 4 * ((units + 3) / 4 * 4);
}

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

// Units [first, first + n) of a head, less those that are forced. Cached: filled up with -inf to a
// multiple of four.
struct SelectRange {
  const float* scores;
  int32_t first, n;
  bool cached;

  TAMIS_DEVICE float score(int32_t i) const {
    if (cached) return dev::load_shared<float>(kScoresAt + 4 * static_cast<uint32_t>(i));
    return clean_score(dev::load_volatile(scores + first + i));
  }
  // Calls fn(score) for this thread's share of the cached ones, in no order.
  template <class Fn>
  TAMIS_DEVICE void for_cached(const Fn& fn) const {
    const auto quads = static_cast<uint32_t>(n + 3) / 4;
    for (uint32_t i = dev::thread_index(); i < quads; i += kSelectThreads) {
      const auto four = dev::load_shared<dev::Word4>(kScoresAt + 16 * i);
      fn(dev::float_of(four.x));
      fn(dev::float_of(four.y));
      fn(dev::float_of(four.z));
      fn(dev::float_of(four.w));
    }
  }
};

// What stands behind a count: the digit of the k-th largest, how many of the k belong to it, and
// how many there are of it.
struct Digit {
  uint32_t digit, wanted, here;
};

TAMIS_DEVICE void clear_counts() {
  for (uint32_t i = dev::thread_index(); i < 1u << kDigitBits; i += kSelectThreads) {
    dev::store_shared<uint32_t>(kCountsAt + 4 * i, 0);
  }
  dev::sync_block();
}

// The digit of the k-th, from the largest down; a thread looks at two neighbours.
TAMIS_DEVICE Digit find_digit(int32_t k) {
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  static_assert(1u << kDigitBits == 2 * kSelectThreads, "two digits a thread");
  dev::sync_block();  // everything is counted
  const uint32_t top = (1u << kDigitBits) - 1 - 2 * thread;
  const auto first = dev::load_shared<uint32_t>(kCountsAt + 4 * top);
  const auto second = dev::load_shared<uint32_t>(kCountsAt + 4 * (top - 1));
  uint32_t through = first + second;
  for (int distance = 1; distance < 32; distance *= 2) {
    through = dev::prefix_step(through, distance);
  }
  if (lane == 31) dev::store_shared<uint32_t>(kWarpsAt + 4 * warp, through);
  dev::sync_block();
  uint32_t before = lane < warp ? dev::load_shared<uint32_t>(kWarpsAt + 4 * lane) : 0;
  for (int distance = 1; distance < 32; distance *= 2) before = dev::prefix_step(before, distance);
  through += static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(before), 31));
  const uint32_t above = through - first - second, wanted = static_cast<uint32_t>(k);
  if (above < wanted && wanted <= through) {
    const bool one = wanted <= above + first;
    dev::store_shared<uint32_t>(kStateAt, one ? top : top - 1);
    dev::store_shared<uint32_t>(kStateAt + 4, wanted - above - (one ? 0 : first));
    dev::store_shared<uint32_t>(kStateAt + 8, one ? first : second);
  }
  dev::sync_block();
  const Digit found{dev::load_shared<uint32_t>(kStateAt), dev::load_shared<uint32_t>(kStateAt + 4),
                    dev::load_shared<uint32_t>(kStateAt + 8)};
  dev::sync_block();  // before the state changes again
  return found;
}

// The k-th largest of n, 0 < k < n, and how many equal ones belong to the k.
TAMIS_DEVICE void radix_threshold(const SelectRange& s, int32_t k, float* threshold,
                                  int32_t* ties) {
  uint32_t prefix = 0;
  for (int pass = 0; pass < 3; ++pass) {
    const uint32_t shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, size = pass < 2 ? kDigitBits : 10;
    clear_counts();
    const uint32_t known = pass == 0 ? 0 : ~0u << (shift + size);
    for (auto i = static_cast<int32_t>(dev::thread_index()); i < s.n; i += kSelectThreads) {
      const uint32_t bits = ordered_bits(s.score(i));
      if ((bits & known) == prefix) {
        dev::count_shared(kCountsAt + 4 * (bits >> shift & ((1u << size) - 1)));
      }
    }
    const Digit found = find_digit(k);
    prefix |= found.digit << shift;
    k = static_cast<int32_t>(found.wanted);
  }
  *threshold = from_ordered(prefix);
  *ties = k;
}

// Fills the cache. Smallest and largest score above -inf, in every thread; none: low > high.
TAMIS_DEVICE void cache_scores(const SelectRange& s, float* low, float* high) {
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  float a = -kSelectNever, b = kSelectNever;
  const int32_t whole = (s.n + 3) / 4 * 4;
  constexpr int kAtOnce = 8;  // loads on their way before the first store, which loads do not pass
  for (int32_t from = 0; from < whole; from += kAtOnce * kSelectThreads) {
    float x[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int32_t i = from + j * kSelectThreads + static_cast<int32_t>(thread);
      x[j] = i < s.n ? dev::load_volatile(s.scores + s.first + i) : kSelectNever;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int32_t i = from + j * kSelectThreads + static_cast<int32_t>(thread);
      const float clean = clean_score(x[j]);
      if (i < whole) {
        dev::store_shared<float>(kScoresAt + 4 * static_cast<uint32_t>(i), clean);
        b = dev::max(b, clean);
        a = clean == kSelectNever ? a : -dev::max(-a, -clean);
      }
    }
  }
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
  a = dev::load_shared<float>(kWarpsAt + 8 * lane);
  b = dev::load_shared<float>(kWarpsAt + 8 * lane + 4);
  join();
  *low = a;
  *high = b;
  dev::sync_block();
}

// The same as radix_threshold where the scores are cached and spread enough; false elsewhere.
TAMIS_DEVICE bool linear_threshold(const SelectRange& s, int32_t k, float* threshold,
                                   int32_t* ties) {
  float low, high;
  cache_scores(s, &low, &high);
  const float width = dev::add(high, -low);
  if (!(width > 0) || width > 3e38f) return false;
  // Rounded sums and products rise with x, so a larger score never has a smaller step; -inf has 0,
  // and what fills the cache up only adds to it.
  const float scale = dev::divide(2045.0f, width);
  const auto step_of = [&](float x) {
    return 1 + dev::to_int(dev::max(dev::mul(dev::add(x, -low), scale), -1.0f));
  };
  clear_counts();
  s.for_cached(
      [&](float x) { dev::count_shared(kCountsAt + 4 * static_cast<uint32_t>(step_of(x))); });
  const Digit found = find_digit(k);
  if (found.digit == 0 || found.here > kCandidates) return false;
  if (dev::thread_index() == 0) dev::store_shared<uint32_t>(kStateAt, 0);
  dev::sync_block();
  s.for_cached([&](float x) {
    if (step_of(x) == static_cast<int32_t>(found.digit)) {  // in any order: only ranks count
      dev::store_shared<float>(kCandidatesAt + 4 * dev::add_shared(kStateAt, 1), x);
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

// Lists units first + i of all scores above the threshold and of the first `ties` equal to it.
template <class Put>
TAMIS_DEVICE void list_chosen(const SelectRange& s, float threshold, int32_t ties, const Put& put) {
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const int32_t share = (s.n / 32 / static_cast<int32_t>(kSelectWarps) + 1) * 32;
  const int32_t begin = static_cast<int32_t>(warp) * share;
  const int32_t end = begin + share < s.n ? begin + share : s.n;
  const uint32_t before = (1u << lane) - 1;
  uint32_t both = 0;  // of this lane: above, and equal in the high half
#pragma unroll 4
  for (int32_t i = begin + static_cast<int32_t>(lane); i < end; i += 32) {
    const float x = s.score(i);
    both += x > threshold ? 1u : x == threshold ? 0x10000u : 0u;
  }
  for (int distance = 1; distance < 32; distance *= 2) both = dev::prefix_step(both, distance);
  if (lane == 31) dev::store_shared<uint32_t>(kWarpsAt + 4 * warp, both);
  dev::sync_block();
  // A warp's share has at most 65535 units: kSelectUnits.
  uint32_t place = lane < warp ? dev::load_shared<uint32_t>(kWarpsAt + 4 * lane) & 0xffffu : 0;
  uint32_t equals = lane < warp ? dev::load_shared<uint32_t>(kWarpsAt + 4 * lane) >> 16 : 0;
  for (int distance = 1; distance < 32; distance *= 2) {
    place = dev::prefix_step(place, distance);
    equals = dev::prefix_step(equals, distance);
  }
  auto at = static_cast<int32_t>(dev::shuffle(static_cast<int32_t>(place), 31));
  auto seen = static_cast<int32_t>(dev::shuffle(static_cast<int32_t>(equals), 31));
  at += seen < ties ? seen : ties;
#pragma unroll 2
  for (int32_t i = begin; i < end; i += 32) {  // the same in every lane
    const int32_t here = i + static_cast<int32_t>(lane);
    const float x = here < end ? s.score(here) : kSelectNever;
    bool mine = here < end && x > threshold;
    const uint32_t same = dev::ballot(here < end && x == threshold);
    if (same != 0) {
      mine = mine || ((same >> lane & 1) != 0 && seen + dev::popcount(same & before) < ties);
      seen += dev::popcount(same);
    }
    const uint32_t taken = dev::ballot(mine);
    if (mine) put(at + dev::popcount(taken & before), s.first + here);
    at += dev::popcount(taken);
  }
}

// Grid [heads] of kSelectThreads.
TAMIS_DEVICE void select_units(const SelectParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const KvSelectArgs& a = p.args;
  const uint32_t thread = dev::thread_index();
  const int64_t head = dev::block_index_x();
  const auto units = static_cast<int32_t>(a.units);
  const auto page = static_cast<int32_t>(a.page);
  int32_t begin = a.begin ? dev::load_global(a.begin + head) : 0;
  begin = begin < 0 ? 0 : begin < units ? begin : units;
  const int32_t all = units - begin;
  const int32_t sink = a.sink < all ? static_cast<int32_t>(a.sink) : all;
  const int32_t recent = a.recent < all - sink ? static_cast<int32_t>(a.recent) : all - sink;
  const int32_t n = all - sink - recent;
  const int64_t budget = a.budget ? int64_t{dev::load_global(a.budget + head)} : a.k;
  const int64_t room = a.index_stride / page;  // never written beyond
  int64_t wanted = (budget < room ? budget : room) - sink - recent;
  wanted = wanted < 0 ? 0 : wanted < n ? wanted : n;
  const auto k = static_cast<int32_t>(wanted);
  int32_t* index = a.index + head * a.index_stride;
  const auto put = [&](int32_t place, int32_t unit) {
    for (int32_t j = 0; j < page; ++j) index[int64_t{place} * page + j] = unit * page + j;
  };
  for (auto i = static_cast<int32_t>(thread); i < sink; i += kSelectThreads) put(i, begin + i);
  for (auto i = static_cast<int32_t>(thread); i < recent; i += kSelectThreads) {
    put(sink + k + i, units - recent + i);
  }
  if (thread == 0) a.count[head] = (sink + k + recent) * page;
  if (k == n) {
    for (auto i = static_cast<int32_t>(thread); i < n; i += kSelectThreads) {
      put(sink + i, begin + sink + i);
    }
    return;
  }
  if (k == 0) return;
  const SelectRange range{a.scores + head * a.units, begin + sink, n, p.cached};
  float threshold = 0;
  int32_t ties = 0;
  if (!p.cached || !linear_threshold(range, k, &threshold, &ties)) {
    radix_threshold(range, k, &threshold, &ties);
  }
  list_chosen(range, threshold, ties,
              [&](int32_t place, int32_t unit) { put(sink + place, unit); });
}

}  // namespace tamis
