// kv_choose: kv_estimate of labels and kv_select in one launch, for contexts that the shared memory
// of one cluster of blocks a head holds in eight bytes a unit. Every block scores its share of the
// units once, by tensor cores, and keeps the scores of four rows in 16 bits; what rows come to, by
// which 16 bits are enough to say which units are among the k best but for few candidates; and
// those are scored again, exactly. Three meetings of the cluster: what rows come to; counts of the
// steps of equal width between bounds of the scores, which find the step of the k-th; the
// candidates and how many units each block takes beside them. Lists are those of kv_select from
// exact scores. Where 16 bits do not tell units apart (many equal scores, scores beyond f16), every
// unit is scored again and a radix finds the k-th. NaN stands for units that are not to choose
// from.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_select/choose_scores.cuh"

namespace tamis {

TAMIS_DEVICE void clear_choose_counts() {
  dev::store_shared<dev::Word2>(kChooseCountsAt + 8 * dev::thread_index(), {0, 0});
}

// The digit of the k-th largest over the cluster's counts, from the largest down; a thread looks at
// two neighbours in every block, together in a word, as a cluster has at most 32768 units.
TAMIS_DEVICE Digit find_cluster_digit(const ChooseParams& p, int32_t k) {
  static_assert(kChooseMost < 65536, "counts of 16 bits");
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const uint32_t pair = kChooseThreads - 1 - thread, pair_at = kChoosePairsAt + 4 * pair;
  dev::sync_block();  // everything is counted
  const auto counted = dev::load_shared<dev::Word2>(kChooseCountsAt + 8 * pair);
  dev::store_shared<uint32_t>(pair_at, counted.x | counted.y << 16);
  dev::sync_block();
  dev::sync_cluster_unordered();
  uint32_t both = 0;
#pragma unroll
  for (uint32_t block = 0; block < kChooseBlocks; ++block) {
    if (static_cast<int32_t>(block) < p.estimate.blocks) both += dev::load_cluster(block, pair_at);
  }
  const uint32_t first = both >> 16, second = both & 0xffffu;  // the larger digit first
  uint32_t through = first + second;
  for (int distance = 1; distance < 32; distance *= 2) {
    through = dev::prefix_step(through, distance);
  }
  if (lane == 31) dev::store_shared<uint32_t>(kChooseWarpsAt + 4 * warp, through);
  dev::sync_block();
  uint32_t before = lane < warp ? dev::load_shared<uint32_t>(kChooseWarpsAt + 4 * lane) : 0;
  for (int distance = 1; distance < 32; distance *= 2) before = dev::prefix_step(before, distance);
  through += static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(before), 31));
  const uint32_t above = through - first - second, wanted = static_cast<uint32_t>(k);
  if (above < wanted && wanted <= through) {
    const bool one = wanted <= above + first;
    dev::store_shared<uint32_t>(kChooseStateAt, 2 * pair + (one ? 1 : 0));
    dev::store_shared<uint32_t>(kChooseStateAt + 4, wanted - above - (one ? 0 : first));
    dev::store_shared<uint32_t>(kChooseStateAt + 8, one ? first : second);
  }
  dev::sync_block();
  const auto found = dev::load_shared<dev::Word4>(kChooseStateAt);
  return {found.x, found.y, found.z};
}

// Steps of equal width, in place of digits: 1 to 1017 between the bounds.
struct ChooseSteps {
  float low, scale;

  TAMIS_DEVICE explicit ChooseSteps(const ChooseBounds& b)
      : low(b.low), scale(dev::divide(static_cast<float>(kChooseSteps) - 8, b.high - b.low)) {}

  TAMIS_DEVICE uint32_t of(float x) const {  // 0: not to choose from, or below everything
    const float steps = dev::max(dev::mul(dev::add(x, -low), scale), -1.0f);
    return dev::bits_of(dev::add(steps, 8388609.0f)) - 0x4b000000u;
  }
  // What lies half a step below the middle of a step, or above it.
  TAMIS_DEVICE float edge(uint32_t step, float half) const {
    return low + dev::divide(static_cast<float>(step) - 1 + half, scale);
  }
};

TAMIS_DEVICE void take_unit(int32_t place) {
  const auto of = static_cast<uint32_t>(place);
  dev::add_shared(kChooseTakenAt + 4 * (of / 32), 1u << of % 32);
}

// What reads chosen units as soon as they are known (ChosenReader of sparse_attention); this one
// reads nothing.
struct NoReader {
  static constexpr bool kLists = true;  // chosen units go to memory
  TAMIS_DEVICE void ask_query() {}
  TAMIS_DEVICE void query_there() {}
  // The lane's units that are certain, bits of the word that it holds, and how many the lanes below
  // have; what warps have lies at kChooseWarpsAt. Scores are not needed any more.
  TAMIS_DEVICE void list_sure(uint32_t, uint32_t) {}
  TAMIS_DEVICE void start(const EstimatePlace&) {}  // behind a barrier after that
  TAMIS_DEVICE void forget() {}  // nothing was certain, and scores are needed once more
  TAMIS_DEVICE void list_unit(int32_t) {}
  // All is chosen; bits of chosen units lie there, or everything is.
  TAMIS_DEVICE void read(const EstimatePlace&, const SelectTask&, uint32_t) {}
};
// Where bits lie that list_unit sets.
inline constexpr uint32_t kChooseListedAt = kChooseCandidatesAt, kChooseNowhere = 0xffffffffu;

// Finds out which of the block's units are among the k best of the head, a bit each, and how many
// the blocks before have; everything is counted. False, in every block, where 16 bits do not tell.
template <class Reader>
TAMIS_DEVICE bool take_best(const ChooseParams& p, const EstimatePlace& at, const ChooseHeld& s,
                            const ChooseBounds& b, int32_t k, int32_t* before, Reader& reader) {
  const ChooseSteps steps(b);
  const uint32_t thread = at.thread, block = dev::block_index_x();
  const auto blocks = static_cast<uint32_t>(p.estimate.blocks);
  const uint32_t room = kChooseCandidates / blocks;
  const Digit found = find_cluster_digit(p, k);
  if (found.digit == 0) return false;
  // The k-th exact score is within slack of the step, and so is every score that 16 bits put within
  // twice as much of it.
  const float low = steps.edge(found.digit, -0.52f) - 2 * b.slack;
  const float high = steps.edge(found.digit, 0.52f) + 2 * b.slack;
  uint32_t mine = 0;
  s.for_turns([&](int turn) {
    const float x = s.score(turn);
    const uint32_t sure = dev::ballot(x > high);
    if (at.lane == static_cast<uint32_t>(turn)) mine = sure;
    if (x >= low && x <= high) {
      const uint32_t i = dev::add_shared(kKeptAt, 1);
      if (i < room) dev::store_shared<int32_t>(kChooseKeptAt + 4 * i, s.place(turn));
    }
  });
  const uint32_t word = static_cast<uint32_t>(s.turns) * at.warp + at.lane;
  if (static_cast<int32_t>(at.lane) < s.turns) {
    dev::store_shared<uint32_t>(kChooseTakenAt + 4 * word, mine);
  }
  auto sure = static_cast<uint32_t>(dev::popcount(mine));
  for (int distance = 1; distance < 32; distance *= 2) sure = dev::prefix_step(sure, distance);
  if (at.lane == 31) {
    dev::add_shared(kSureAt, sure);
    dev::store_shared<uint32_t>(kChooseWarpsAt + 4 * at.warp, sure);
  }
  dev::sync_block();
  const uint32_t kept = dev::load_shared<uint32_t>(kKeptAt), region = 4 * room * block;
  if (kept <= room && thread < kept) {
    const auto place = dev::load_shared<int32_t>(kChooseKeptAt + 4 * thread);
    const float x = clean_score(exact_score(p, at, at.first + place));
    const float in_pairs = x + b.shift;
    if (in_pairs > high - b.slack) {
      take_unit(place);
      dev::add_shared(kSureAt, 1);
    } else if (in_pairs >= low + b.slack) {
      const uint32_t to = region + 4 * dev::add_shared(kSentAt, 1);
#pragma unroll 1
      for (uint32_t i = 0; i < blocks; ++i) {
        dev::store_cluster(i, kChooseCandidatesAt + to, dev::bits_of(x));
        dev::store_cluster(i, kChooseCandidateUnitsAt + to,
                           static_cast<uint32_t>(at.first + place));
      }
    }
  }
  reader.list_sure(mine, sure - static_cast<uint32_t>(dev::popcount(mine)));
  dev::sync_block();
  reader.start(at);
  if (thread < blocks) {
    dev::store_cluster(thread, kChooseToldAt + 8 * block, dev::load_shared<uint32_t>(kSureAt));
    dev::store_cluster(thread, kChooseToldAt + 8 * block + 4,
                       kept <= room ? dev::load_shared<uint32_t>(kSentAt) : kChooseMost);
  }
  dev::sync_cluster();  // the last one: nobody reaches for another block after it
  // Where each block's candidates go among all, and what blocks before have taken: a lane a block.
  dev::Word2 told{0, 0};
  if (at.lane < blocks) told = dev::load_shared<dev::Word2>(kChooseToldAt + 8 * at.lane);
  uint32_t taken = told.x, all = told.y;
  for (int distance = 1; distance < kChooseBlocks; distance *= 2) {
    taken = dev::prefix_step(taken, distance);
    all = dev::prefix_step(all, distance);
  }
  const auto of = [](uint32_t x, uint32_t lane) {
    return static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(x), static_cast<int>(lane)));
  };
  *before = static_cast<int32_t>(of(taken - told.x, block));
  const uint32_t from = of(all - told.y, thread % blocks), count = of(told.y, thread % blocks);
  taken = of(taken, blocks - 1);
  all = of(all, blocks - 1);
  const auto wanted = static_cast<uint32_t>(k) - taken;  // of the candidates
  if (all > kChooseCandidates || wanted == 0 || wanted > all) return false;
  for (uint32_t i = thread / blocks; i < count; i += kChooseThreads / blocks) {
    const uint32_t region_of = 4 * (room * (thread % blocks) + i), to = 4 * (from + i);
    dev::store_shared<uint32_t>(kChoosePairsAt + to,
                                dev::load_shared<uint32_t>(kChooseCandidatesAt + region_of));
    dev::store_shared<uint32_t>(kChooseKeptAt + to,
                                dev::load_shared<uint32_t>(kChooseCandidateUnitsAt + region_of));
  }
  dev::sync_block();
  const auto score = [](uint32_t i) { return dev::load_shared<float>(kChoosePairsAt + 4 * i); };
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
  for (uint32_t first = 4 * at.warp; first < all; first += kChooseThreads / 8) {
    const uint32_t i = first + at.lane / 8;
    const float x = i < all ? score(i) : 0.0f;
    int32_t through = 0;  // those that are no smaller
#pragma unroll 4
    for (uint32_t other = at.lane % 8; other < all; other += 8)
      through += score(other) >= x ? 1 : 0;
#pragma unroll
    for (uint32_t mask = 1; mask < 8; mask *= 2) {
      through += dev::shuffle(through, static_cast<int>(at.lane ^ mask));
    }
    if (at.lane % 8 != 0 || i >= all) continue;
    if (through <= static_cast<int32_t>(wanted)) take(unit_of(i));
    if (through == static_cast<int32_t>(wanted)) dev::store_shared<uint32_t>(kMetAt, 1);
  }
  dev::sync_block();
  if (dev::load_shared<uint32_t>(kMetAt) == 0) {  // some of equal ones: the lowest units
    if (thread < all) {
      const float x = score(thread);
      uint32_t above = 0, through = 0, lower = 0;
      for (uint32_t i = 0; i < all; ++i) {
        above += score(i) > x ? 1 : 0;
        through += score(i) >= x ? 1 : 0;
        lower += score(i) == x && unit_of(i) < unit_of(thread) ? 1 : 0;
      }
      if (through > wanted && above + lower < wanted) take(unit_of(thread));
    }
    dev::sync_block();
  }
  *before += dev::load_shared<int32_t>(kEarlierAt);
  return true;
}

// Calls put(place, unit) for the units that take_best took.
template <class Put>
TAMIS_DEVICE void list_taken(const EstimatePlace& at, const ChooseHeld& s, int32_t before,
                             const Put& put) {
  const int32_t word = s.turns * static_cast<int32_t>(at.warp) + static_cast<int32_t>(at.lane);
  uint32_t taken = 0;
  if (static_cast<int32_t>(at.lane) < s.turns) {
    taken = dev::load_shared<uint32_t>(kChooseTakenAt + 4 * static_cast<uint32_t>(word));
  }
  const auto mine = static_cast<uint32_t>(dev::popcount(taken));
  uint32_t through = mine;
  for (int distance = 1; distance < 32; distance *= 2) {
    through = dev::prefix_step(through, distance);
  }
  if (at.lane == 31) dev::store_shared<uint32_t>(kChooseWarpsAt + 4 * at.warp, through);
  dev::sync_block();
  uint32_t warps = at.lane < at.warp ? dev::load_shared<uint32_t>(kChooseWarpsAt + 4 * at.lane) : 0;
  for (int distance = 1; distance < 32; distance *= 2) warps = dev::prefix_step(warps, distance);
  int32_t to =
      before + dev::shuffle(static_cast<int32_t>(warps), 31) + static_cast<int32_t>(through - mine);
  for (; taken != 0; taken &= taken - 1) {
    put(to++, at.first + 32 * word + dev::popcount((taken & (0u - taken)) - 1));
  }
}

// As radix_threshold.
TAMIS_DEVICE void radix_cluster_threshold(const ChooseParams& p, const ChooseHeld& s, int32_t k,
                                          float* threshold, int32_t* ties) {
  uint32_t prefix = 0;
#pragma unroll 1
  for (int32_t shift = 22; shift > -10; shift = shift == 2 ? 0 : shift - 10) {
    const uint32_t size = shift == 0 ? 2 : 10;
    dev::sync_cluster();  // nobody reads the counts any more
    clear_choose_counts();
    dev::sync_block();
    const uint32_t known = shift == 22 ? 0 : ~0u << (static_cast<uint32_t>(shift) + size);
    s.for_turns([&](int turn) {
      const float x = s.score(turn);
      const uint32_t bits = ordered_bits(x);
      if (x == x && (bits & known) == prefix) {
        dev::count_shared(kChooseCountsAt + 4 * (bits >> shift & ((1u << size) - 1)));
      }
    });
    const Digit found = find_cluster_digit(p, k);
    prefix |= found.digit << shift;
    k = static_cast<int32_t>(found.wanted);
    if (shift == 0) break;
  }
  *threshold = from_ordered(prefix);
  *ties = k;
  dev::sync_cluster();
}

// Lists the chosen ones of the block's scores.
template <class Put>
TAMIS_DEVICE void list_block(const ChooseParams& p, ChooseHeld s, float threshold, int32_t ties,
                             const Put& put) {
  const uint32_t block = dev::block_index_x(), thread = dev::thread_index();
  const auto before = [&](const int32_t (&all)[2], int32_t* listed, int32_t* met) {
    if (static_cast<int32_t>(thread) < p.estimate.blocks) {
      dev::store_cluster(thread, kChooseToldAt + 8 * block, static_cast<uint32_t>(all[0]));
      dev::store_cluster(thread, kChooseToldAt + 8 * block + 4, static_cast<uint32_t>(all[1]));
    }
    dev::sync_cluster();  // the last one: nobody reaches for another block after it
    for (uint32_t i = 0; i < block; ++i) {
      *listed += dev::load_shared<int32_t>(kChooseToldAt + 8 * i);
      *met += dev::load_shared<int32_t>(kChooseToldAt + 8 * i + 4);
    }
  };
  list_chosen(s, threshold, ties, before, put);
}

// Grid [blocks, heads] of kChooseThreads, the blocks of a head a cluster.
template <class Reader>
TAMIS_DEVICE void choose_units(const ChooseParams& p, Reader& reader) {
  const EstimatePlace at(p.estimate);
  const KvUnits& labels = p.estimate.args.units;
  if (at.thread == 0) dev::prefetch(labels.channels + at.kv_head * labels.labels.channels);
  dev::wait_for_previous();
  dev::allow_next();
  reader.ask_query();
  const int64_t head = at.head;
  const KvSelectArgs& a = p.select;
  const auto page = static_cast<int32_t>(a.page);
  const auto block = static_cast<int32_t>(dev::block_index_x());
  const SelectTask task(a, head);
  const bool chooses = task.k > 0 && task.k < task.n;
  const int32_t first = task.begin + task.sink;  // to choose from
  int32_t* index = a.index + head * a.index_stride;
  float* out = p.estimate.args.out;
  uint32_t bits_at = kChooseNowhere;
  if (chooses || out != nullptr) {
    clear_choose_counts();
    if (at.thread < 8) dev::store_shared<uint32_t>(kChooseSumsAt + 4 * at.thread, 0);
    score_block(p, at, estimate_begin(p.estimate, at.head));
    reader.query_there();
    const ChooseBounds bounds = find_bounds(p, at);
    const ChooseHeld held{{nullptr, at.first, kChooseThreads * p.turns}, p.turns};
    if (out != nullptr) {
#pragma unroll 1
      for (int32_t unit = at.first + static_cast<int32_t>(at.thread); unit < at.last;
           unit += kChooseThreads) {
        out[head * a.units + unit] = unit < task.begin ? kSelectNever : exact_score(p, at, unit);
      }
    }
    const int32_t end = first + task.n < at.last ? first + task.n : at.last;
    const auto choose_from = [&](int32_t place) {
      return at.first + place >= first && at.first + place < end;
    };
    const auto put = [&](int32_t place, int32_t unit) {
      if constexpr (!Reader::kLists) return;
      int32_t* to = index + (task.sink + place) * page;
      for (int32_t i = 0; i < page; ++i) to[i] = unit * page + i;
    };
    if (chooses) {
      bool found = bounds.spread();
      int32_t before = 0;
      if (found) {
        const ChooseSteps steps(bounds);
        held.for_turns([&](int turn) {
          const int32_t place = held.place(turn);
          const auto pairs = dev::load_shared<dev::Word2>(ChooseHeld::at(place));
          const float best = bounds.score(pairs.x, pairs.y);
          const float x = choose_from(place) ? best : __builtin_nanf("");
          dev::store_shared<float>(ChooseHeld::at(place), x);
          dev::count_shared(kChooseCountsAt + 4 * steps.of(x));
        });
        found = take_best(p, at, held, bounds, task.k, &before, reader);
      }
      bits_at = found ? kChooseTakenAt : kChooseListedAt;
      if (found) {
        if constexpr (Reader::kLists) list_taken(at, held, before, put);
      } else {
        reader.forget();
#pragma unroll 1
        for (int turn = 0; turn < p.turns; ++turn) {
          const int32_t place = held.place(turn);
          float x = __builtin_nanf("");
          if (choose_from(place)) x = clean_score(exact_score(p, at, at.first + place));
          dev::store_shared<float>(ChooseHeld::at(place), x);
        }
        float threshold = 0;
        int32_t ties = 0;
        radix_cluster_threshold(p, held, task.k, &threshold, &ties);
        list_block(p, held, threshold, ties, [&](int32_t place, int32_t unit) {
          put(place, unit);
          reader.list_unit(unit - at.first);
        });
      }
    } else {
      dev::sync_cluster();  // nobody reads what rows come to any more
    }
  }
  reader.read(at, task, bits_at);
  if constexpr (!Reader::kLists) return;
  // Forced ones, and all where none is left out; a block its share.
  const int32_t step = kChooseThreads * p.estimate.blocks;
  const auto put = [&](int32_t place, int32_t unit, int32_t count) {
    for (int32_t i = block * kChooseThreads + static_cast<int32_t>(at.thread); i < count * page;
         i += step) {
      index[place * page + i] = unit * page + i;
    }
  };
  put(0, task.begin, task.sink);
  if (task.k > 0 && !chooses) put(task.sink, first, task.k);
  put(task.sink + task.k, static_cast<int32_t>(a.units) - task.recent, task.recent);
  if (block == 0 && at.thread == 0) {
    a.count[head] = (task.sink + task.k + task.recent) * page;
  }
}

}  // namespace tamis
