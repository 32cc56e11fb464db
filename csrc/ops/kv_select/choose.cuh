// kv_choose: kv_estimate of labels and kv_select in one launch, for contexts that the shared memory
// of one cluster of blocks a head holds in eight or sixteen bytes a unit. Every block scores its
// share of the units once, by tensor cores, and keeps the scores of four rows or eight. Three
// meetings of the cluster: what rows come to (sent, without a meeting, to readers of whole scores);
// counts of the steps of equal width between bounds of the scores, which find the step of the k-th;
// candidates and how many units each block takes beside them. Where scores in f32 find room,
// candidates are what lies in that step, and are ranked (settle_whole.cuh). Else scores have 16
// bits, which are enough to say which units are among the k best but for few, and those are scored
// again, exactly (settle.cuh). Lists are those of kv_select from exact scores. Where steps do not
// tell units apart (many equal scores, scores beyond f16), every unit is scored again and a radix
// finds the k-th. NaN stands for units that are not to choose from.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_select/choose_block.cuh"
#include "ops/kv_select/choose_scores.cuh"
#include "ops/kv_select/settle.cuh"
#include "ops/kv_select/settle_whole.cuh"

namespace tamis {

TAMIS_DEVICE void clear_choose_counts() {
  dev::store_shared<dev::Word2>(kChooseCountsAt + 8 * dev::thread_index(), {0, 0});
}

// The digit of the k-th largest over the cluster's counts of kSteps, from the largest down; a
// thread looks at two neighbours in every block, together in a word, as a block has at most 16384
// units: bytes from other blocks are what it waits for. kTells: in kChooseToldAt, what the blocks
// before each have in that digit; not where a block that is further may have said what it takes.
template <uint32_t kSteps, bool kTells = false>
TAMIS_DEVICE Digit find_cluster_digit(const ChooseParams& p, int32_t k) {
  static_assert(kChooseUnits < 65536, "counts of 16 bits");
  constexpr uint32_t kPairs = kSteps / 2;
  static_assert(kPairs <= kChooseThreads && kPairs % 32 == 0, "a thread a pair");
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const bool counts = kPairs == kChooseThreads || thread < kPairs;  // the same in every lane
  const uint32_t pair = kPairs - 1 - thread, pair_at = kChoosePairsAt + 4 * pair;
  dev::sync_block();  // everything is counted
  if (counts) {
    const auto counted = dev::load_shared<dev::Word2>(kChooseCountsAt + 8 * pair);
    dev::store_shared<uint32_t>(pair_at, counted.x | counted.y << 16);
  }
  dev::sync_block();
  dev::sync_cluster_unordered();
  uint32_t theirs[kChooseBlocks] = {};
  uint32_t first = 0, second = 0, through = 0;  // the larger digit first
  if (counts) {
#pragma unroll
    for (uint32_t block = 0; block < kChooseBlocks; ++block) {
      if (static_cast<int32_t>(block) < p.estimate.blocks) {
        theirs[block] = dev::load_cluster(block, pair_at);
      }
    }
#pragma unroll
    for (uint32_t block = 0; block < kChooseBlocks; ++block) {
      first += theirs[block] >> 16;
      second += theirs[block] & 0xffffu;
    }
    through = first + second;
    for (int distance = 1; distance < 32; distance *= 2) {
      through = dev::prefix_step(through, distance);
    }
    if (lane == 31) dev::store_shared<uint32_t>(kChooseWarpsAt + 4 * warp, through);
  }
  dev::sync_block();
  if (counts) {
    through +=
        dev::warp_sum(lane < warp ? dev::load_shared<uint32_t>(kChooseWarpsAt + 4 * lane) : 0);
  }
  const uint32_t above = through - first - second, wanted = static_cast<uint32_t>(k);
  if (counts && above < wanted && wanted <= through) {
    const bool one = wanted <= above + first;
    dev::store_shared<uint32_t>(kChooseStateAt, 2 * pair + (one ? 1 : 0));
    dev::store_shared<uint32_t>(kChooseStateAt + 4, wanted - above - (one ? 0 : first));
    dev::store_shared<uint32_t>(kChooseStateAt + 8, one ? first : second);
    if constexpr (kTells) {
      uint32_t blocks_before = 0;
#pragma unroll
      for (uint32_t block = 0; block < kChooseBlocks; ++block) {
        dev::store_shared<uint32_t>(kChooseToldAt + 4 * block, blocks_before);
        blocks_before += one ? theirs[block] >> 16 : theirs[block] & 0xffffu;
      }
    }
  }
  dev::sync_block();
  const auto found = dev::load_shared<dev::Word4>(kChooseStateAt);
  return {found.x, found.y, found.z};
}

// Where the units lie that a head chooses: those that are certain, and then what is settled; a
// list; all bits that list_unit set; everything.
enum class Chosen { certain, settled, listed, all };

// What reads chosen units as soon as they are known (ChosenReader of sparse_attention); this one
// reads nothing.
struct NoReader {
  static constexpr bool kLists = true;               // chosen units go to memory
  static constexpr int kChannels = kChooseChannels;  // that labels mostly have
  using Settlers = ChooseGroup<0, kChooseThreads / 32, 0>;
  TAMIS_DEVICE void begin() {}  // before a barrier
  TAMIS_DEVICE void ask_query() {}
  TAMIS_DEVICE void write_label(const EstimatePlace&) {}  // before a barrier
  TAMIS_DEVICE void query_there() {}
  // Bits of a word of units are certain; how many of them are listed before a barrier.
  TAMIS_DEVICE uint32_t note(const EstimatePlace&, const SelectTask&, uint32_t, uint32_t) {
    return 0;
  }
  TAMIS_DEVICE void count(uint32_t) {}  // the warp's, by one lane
  TAMIS_DEVICE void forget() {}         // scores are needed once more
  TAMIS_DEVICE void list_unit(int32_t) {}
  // False if settle() does not tell what is chosen.
  template <class Settle>
  TAMIS_DEVICE bool read(const EstimatePlace&, const SelectTask&, Chosen from,
                         const Settle& settle) {
    return from != Chosen::certain || settle();
  }
};
// Where bits lie that list_unit sets.
inline constexpr uint32_t kChooseListedAt = kChooseCandidatesAt;

// Leaves a bit a unit that is certain, the candidates of the block and what their scores are held
// to; everything is counted. False, in every block, where no step is found.
template <class Bounds, class Reader>
TAMIS_DEVICE bool find_certain(const ChooseParams& p, const EstimatePlace& at,
                               const SelectTask& task, const ChooseHeld& s, const Digit& found,
                               const Bounds& b, const ChooseSteps<kChooseSteps>& steps,
                               const float (&scores)[Bounds::kTurns], Reader& reader) {
  const uint32_t room = kChooseCandidates / static_cast<uint32_t>(p.estimate.blocks);
  if (found.digit == 0) return false;
  // The k-th exact score is within slack of the step, and so is every score that 16 bits put within
  // twice as much of it.
  const float low = steps.edge(found.digit, -0.55f) - 2 * b.slack;
  const float high = steps.edge(found.digit, 0.55f) + 2 * b.slack;
  if (at.thread == 0) {
    const float edges[3] = {dev::add(low, b.slack), dev::add(high, -b.slack), b.shift};
    dev::store_shared<dev::Word4>(kChooseEdgesAt, {dev::bits_of(edges[0]), dev::bits_of(edges[1]),
                                                   dev::bits_of(edges[2]), 0});
  }
  uint32_t mine = 0, open = 0;  // of the word that this lane holds
  s.for_each_turn<Bounds::kTurns>([&](int turn) {
    const float x = scores[turn];
    const uint32_t sure = dev::ballot(x > high), above = dev::ballot(x >= low);
    if (at.lane == static_cast<uint32_t>(turn)) {
      mine = sure;
      open = above & ~sure;
    }
  });
  const uint32_t word = static_cast<uint32_t>(s.turns) * at.warp + at.lane;
  // At most 512 of each in a warp: ten bits.
  static_assert(32 * kChooseHeld < 1024, "three in a word");
  auto counts = static_cast<uint32_t>(dev::popcount(open));
  const uint32_t own = counts;
  counts |= static_cast<uint32_t>(dev::popcount(mine)) << 10;
  if (static_cast<int32_t>(at.lane) < s.turns) {
    dev::store_shared<uint32_t>(kChooseTakenAt + 4 * word, mine);
    counts |= reader.note(at, task, word, mine) << 20;
  }
  for (int distance = 1; distance < 32; distance *= 2) {
    counts = dev::prefix_step(counts, distance);
  }
  uint32_t first = 0;
  if (at.lane == 31) {
    first = dev::add_shared(kKeptAt, counts & 1023);
    dev::add_shared(kSureAt, counts >> 10 & 1023);
    reader.count(counts >> 20);
  }
  first =
      static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(first), 31)) + (counts & 1023) - own;
  for (; open != 0 && first < room; open &= open - 1, ++first) {
    const int32_t lowest = dev::popcount((open & (0u - open)) - 1);
    dev::store_shared<int32_t>(kChooseKeptAt + 4 * first, static_cast<int32_t>(32 * word) + lowest);
  }
  dev::sync_block();
  return true;
}

// Calls put(place, unit) for the units that are certain or settled.
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
    const Digit found = find_cluster_digit<kChooseSteps>(p, k);
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
template <bool kWhole, int kRows, class Reader>
TAMIS_DEVICE void choose_units(const ChooseParams& p, Reader& reader) {
  using Bounds = ChooseBounds<kWhole, kRows>;
  // What rows come to is sent; the meeting, for barriers alone, then begins at the start and ends
  // before the first send. Beside scores of 16 bits registers do not suffice, nor, of eight rows,
  // for barriers that are made before the wait.
  constexpr bool kSends = kWhole && !Reader::kLists;
  constexpr bool kEarly = kWhole || kRows == kChooseFewRows;
  const EstimatePlace at(p.estimate);
  const KvUnits& labels = p.estimate.args.units;
  if (at.thread == 0) dev::prefetch(labels.channels + at.kv_head * labels.labels.channels);
  const auto make_barriers = [&] {
    if (at.thread == kChooseThreads - 1) {  // whose warp has nothing to do with q
      dev::barrier_init(kChooseTellingAt);
      dev::barrier_init(kChooseSendingAt);
      reader.begin();
      dev::fence_barrier_init();  // the meeting comes where rows or bounds are found
    }
  };
  if constexpr (kEarly) make_barriers();
  if constexpr (kSends) dev::arrive_cluster_unordered();
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
  const auto put = [&](int32_t place, int32_t unit) {
    if constexpr (!Reader::kLists) return;
    int32_t* to = index + (task.sink + place) * page;
    for (int32_t i = 0; i < page; ++i) to[i] = unit * page + i;
  };
  const ChooseHeld held{{nullptr, at.first, kChooseThreads * p.turns}, p.turns};
  Chosen from = chooses ? Chosen::listed : Chosen::all;
  const int32_t end = first + task.n < at.last ? first + task.n : at.last;
  const auto choose_from = [&](int32_t place) {
    return at.first + place >= first && at.first + place < end;
  };
  if constexpr (!kEarly) make_barriers();
  reader.write_label(at);
  if constexpr (!Reader::kLists) {
    if (!chooses && out == nullptr) {  // or here
      kSends ? dev::wait_cluster() : dev::sync_cluster_unordered();
    }
  }
  if (chooses || out != nullptr) {
    clear_choose_counts();
    if (at.thread < 8) dev::store_shared<uint32_t>(kChooseSumsAt + 4 * at.thread, 0);
    score_block<kWhole, kRows, Reader::kChannels, kSends>(p, at,
                                                          estimate_begin(p.estimate, at.head));
    reader.query_there();
    find_bounds<kWhole, kRows, kSends>(p, at);
    const Bounds bounds(p);
    if (out != nullptr) {
#pragma unroll 1
      for (int32_t unit = at.first + static_cast<int32_t>(at.thread); unit < at.last;
           unit += kChooseThreads) {
        out[head * a.units + unit] = unit < task.begin ? kSelectNever : exact_score(p, at, unit);
      }
    }
    if (!chooses) dev::sync_cluster();  // nobody reads what rows come to any more
    if (chooses && spread(bounds)) {
      const ChooseSteps<Bounds::kSteps> steps(dev::load_shared<dev::Word4>(kStepsAt));
      float x[Bounds::kTurns];
      // One address for all turns; of eight rows, one each, as registers do not suffice.
      const ScoresAt<kWhole, kRows> scores(held.place(0), bounds.four_rows);
      held.for_each_turn<Bounds::kTurns>([&](int turn) {
        const float best = kRows == kChooseFewRows
                               ? bounds.score(scores, turn)
                               : bounds.score({held.place(turn), bounds.four_rows}, 0);
        x[turn] = choose_from(held.place(turn)) ? best : __builtin_nanf("");
        dev::count_shared(kChooseCountsAt + 4 * steps.of(x[turn]));
      });
      const Digit found = find_cluster_digit<Bounds::kSteps, kWhole>(p, task.k);
      if constexpr (kWhole) {
        int32_t before = 0;
        if (settle_whole(p, at, task, held, found, bounds, steps, x, reader, &before)) {
          if constexpr (Reader::kLists) list_taken(at, held, before, put);
          from = Chosen::settled;
        }
      } else if (find_certain(p, at, task, held, found, bounds, steps, x, reader)) {
        from = Chosen::certain;
      }
    }
  }
  const auto settle = [&] {
    if constexpr (kWhole) {
      return true;
    } else {
      int32_t before = 0;
      if (!settle_candidates<kRows, typename Reader::Settlers>(p, at, task.k, &before)) {
        return false;
      }
      if constexpr (Reader::kLists) list_taken(at, held, before, put);
      return true;
    }
  };
#pragma unroll 1
  while (true) {  // twice at most
    if (from == Chosen::listed) {
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
    if (reader.read(at, task, from, settle)) break;
    from = Chosen::listed;
  }
  if constexpr (!Reader::kLists) dev::sync_cluster_unordered();  // nobody sends to what has ended
  if constexpr (!Reader::kLists) return;
  // Forced ones, and all where none is left out; a block its share.
  const int32_t step = kChooseThreads * p.estimate.blocks;
  const auto put_run = [&](int32_t place, int32_t unit, int32_t count) {
    for (int32_t i = block * kChooseThreads + static_cast<int32_t>(at.thread); i < count * page;
         i += step) {
      index[place * page + i] = unit * page + i;
    }
  };
  put_run(0, task.begin, task.sink);
  if (task.k > 0 && !chooses) put_run(task.sink, first, task.k);
  put_run(task.sink + task.k, static_cast<int32_t>(a.units) - task.recent, task.recent);
  if (block == 0 && at.thread == 0) {
    a.count[head] = (task.sink + task.k + task.recent) * page;
  }
}

}  // namespace tamis
