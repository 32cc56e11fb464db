// kv_choose: kv_estimate of labels and kv_select in one launch, for contexts whose scores fit the
// shared memory of one cluster of blocks a head. Every block scores its share of the units once,
// for all rows; what rows come to, the counts of steps, the few scores that share the step of the
// k-th and what each block lists cross the cluster through shared memory, four meetings instead of
// three kernels and a second reading of the units. Lists are those of kv_select from the same
// scores: steps of equal width between bounds of the scores instead of their smallest and largest
// (the smallest of each row less its shift), exact all the same; a radix where a step holds too
// many. NaN stands for units that are not to choose from.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_select/choose_params.h"
#include "ops/kv_select/estimate.cuh"
#include "ops/kv_select/select.cuh"

namespace tamis {

// A thread's scores in shared memory: warp w has 32 * turns neighbours, lane l of turn j the one at
// 32 * (turns * w + j) + l. (In registers, unrolled eight times, they made a program that waited
// for its instructions.)
struct ChooseHeld {
  static constexpr int kHeld = kChooseHeld;
  static constexpr uint32_t kWarps = kChooseThreads / 32;
  static constexpr uint32_t kCounts = kChooseCountsAt, kWarpSums = kChooseWarpsAt;
  static constexpr bool kChunks = false, kBlocks = true;
  SelectRange range;  // the block's; n: all places of its threads
  int32_t turns;
  uint32_t scores;  // of unit 0

  TAMIS_DEVICE int32_t place(int turn) const {
    const auto warp = static_cast<int32_t>(dev::thread_index() / 32);
    return 32 * (turns * warp + turn) + static_cast<int32_t>(dev::thread_index() % 32);
  }
  TAMIS_DEVICE float score(int turn) const {
    return dev::load_shared<float>(scores + 4 * static_cast<uint32_t>(place(turn)));
  }
  template <class Fn>
  TAMIS_DEVICE void for_turns(const Fn& fn) const {
#pragma unroll 2
    for (int turn = 0; turn < turns; ++turn) fn(turn);
  }
  template <class Fn>
  TAMIS_DEVICE void for_chunks(const Fn& fn) {
    fn();
  }
};

// Scores of one unit, all rows.
template <int kRows>
TAMIS_DEVICE uint32_t choose_scores_at(int32_t unit) {
  return kChooseScoresAt + 4 * kRows * static_cast<uint32_t>(unit);
}
template <int kRows>
TAMIS_DEVICE void get_scores(uint32_t at, float (&s)[kRows]) {
  if constexpr (kRows == 4) {
    const auto v = dev::load_shared<dev::Word4>(at);
    s[0] = dev::float_of(v.x);
    s[1] = dev::float_of(v.y);
    s[2] = dev::float_of(v.z);
    s[3] = dev::float_of(v.w);
  } else {
    for (int r = 0; r < kRows; ++r) s[r] = dev::load_shared<float>(at + 4 * r);
  }
}

// Largest score, sum of exponentials and smallest score of a row.
struct RowStats {
  float most = kEstimateNever, sum = 0, least = -kEstimateNever;

  // Adds what someone else has.
  TAMIS_DEVICE void join(const RowStats& other) {
    const float all = dev::max(most, other.most);
    if (all != kEstimateNever) {
      sum = (most == kEstimateNever ? 0.0f : sum * exp_of(most - all)) +
            (other.most == kEstimateNever ? 0.0f : other.sum * exp_of(other.most - all));
    }
    most = all;
    least = -dev::max(-least, -other.least);
  }
  // Adds up lanes whose numbers have the same remainder.
  template <int kRemainders>
  TAMIS_DEVICE void join_lanes_of() {
#pragma unroll 1
    for (int mask = 16; mask >= kRemainders; mask /= 2) {
      join({dev::shuffle_xor(most, mask), dev::shuffle_xor(sum, mask),
            dev::shuffle_xor(least, mask)});
    }
  }
  TAMIS_DEVICE void put(uint32_t at) const {
    dev::store_shared<dev::Word4>(at,
                                  {dev::bits_of(most), dev::bits_of(sum), dev::bits_of(least), 0});
  }
  TAMIS_DEVICE static RowStats of(const dev::Word4& v) {
    return {dev::float_of(v.x), dev::float_of(v.y), dev::float_of(v.z)};
  }
};

// A lane's part of two records of 16 labels: tokens lane / 4 and 8 more, word lane % 4.
struct LabelPart {
  static constexpr int kRecords = 2;
  uint32_t word[kRecords][2];
  uint16_t scale[kRecords][2], min[kRecords][2];

  // words, scales: of the lane's first token in the first record; the next one lies `bytes`
  // further.
  TAMIS_DEVICE void load(const uint8_t* words, const uint8_t* scales, int64_t bytes) {
#pragma unroll
    for (int i = 0; i < kRecords; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto* f16 = reinterpret_cast<const uint16_t*>(scales) + 8 * half;
        word[i][half] = dev::load_global(reinterpret_cast<const uint32_t*>(words) + 8 * half);
        scale[i][half] = dev::load_global(f16);
        min[i][half] = dev::load_global(f16 + kLabelTokens);
      }
      words += bytes;
      scales += bytes;
    }
  }
};

// Scores of labels, a warp two records at a time: codes times q in bytes on tensor cores.
template <int kRows>
TAMIS_DEVICE void score_labels(const EstimateParams& p, const EstimatePlace& at,
                               const uint8_t* records) {
  constexpr auto kStep = static_cast<int32_t>(ChooseHeld::kWarps) * LabelPart::kRecords;
  const EstimateShared in(p);
  const uint32_t group = at.lane / 4, t = at.lane % 4, row = 2 * t;
  const auto words = static_cast<uint32_t>(p.args.units.labels.channels) / 8;
  const auto rows = static_cast<uint32_t>(p.args.rows), width = static_cast<uint32_t>(p.width);
  // Records of the block; the second of two that there is not is the first again.
  const int32_t count = (at.last - at.first + kLabelTokens - 1) / kLabelTokens;
  int32_t r = LabelPart::kRecords * static_cast<int32_t>(at.warp);
  const int64_t bytes = p.label_bytes;
  const uint8_t* first = records + (at.first / kLabelTokens + r) * bytes;
  const uint8_t* words_at =
      first + 4 * (kLabelTokens * (t < words ? t : 0) + group);  // no word: q 0
  const uint8_t* scales_at = first + p.label_scale + 2 * group;
  LabelPart part;
  if (r < count) part.load(words_at, scales_at, r + 1 < count ? bytes : 0);  // while q is looked at
  round_queries<kChooseThreads>(p, at);
  dev::sync_block();
  float step[2] = {}, whole[2] = {};
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i) {
    if (row + i >= rows) continue;
    step[i] = dev::load_shared<float>(in.steps + 8 * (row + i));
    whole[i] = dev::load_shared<float>(in.steps + 8 * (row + i) + 4);
  }
  dev::Word2 q{0, 0};
  if (t < words) {
    q = dev::load_shared<dev::Word2>(in.q + 4 * width * (group < rows ? group : 0) + 8 * t);
  }
  uint32_t to = choose_scores_at<kRows>(kLabelTokens * r + static_cast<int32_t>(group)) + 4 * row;
#pragma unroll 1
  for (; r < count; r += kStep) {
    const LabelPart now = part;
    words_at += kStep * bytes;
    scales_at += kStep * bytes;
    if (r + kStep < count) part.load(words_at, scales_at, r + kStep + 1 < count ? bytes : 0);
#pragma unroll
    for (int i = 0; i < LabelPart::kRecords; ++i) {
      const uint32_t low = now.word[i][0], high = now.word[i][1];
      const uint32_t codes[4] = {low & 0x0f0f0f0fu, high & 0x0f0f0f0fu, low >> 4 & 0x0f0f0f0fu,
                                 high >> 4 & 0x0f0f0f0fu};
      int32_t sum[4] = {};
      dev::mma_bytes(sum, codes, q.x, q.y);
      if (row >= kRows || r + i >= count) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float scale = dev::f16_to_f32(now.scale[i][half]);
        const float min = dev::f16_to_f32(now.min[i][half]);
        float x[2];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          x[n] =
              dev::fma(min, whole[n],
                       dev::mul(dev::mul(scale, step[n]), static_cast<float>(sum[2 * half + n])));
        }
        const uint32_t place = to + 4 * kRows * static_cast<uint32_t>(kLabelTokens * i + 8 * half);
        if constexpr (kRows == 1) {
          dev::store_shared<float>(place, x[0]);
        } else {
          dev::store_shared<dev::Word2>(place, {dev::bits_of(x[0]), dev::bits_of(x[1])});
        }
      }
    }
    to += 4 * kRows * kLabelTokens * kStep;
  }
}

TAMIS_DEVICE const uint8_t* units_of(const EstimateParams& p, const EstimatePlace& at) {
  const KvUnits& units = p.args.units;
  return static_cast<const uint8_t*>(units.data) + at.batch * units.batch_stride +
         at.kv_head * units.head_stride;
}

// Asks for the block's units into the L2 cache, where a kernel that still writes some finds them.
TAMIS_DEVICE void ask_units(const EstimateParams& p, const EstimatePlace& at) {
  const int32_t there =
      (at.last - at.first + kLabelTokens - 1) / kLabelTokens * static_cast<int32_t>(p.label_bytes);
  const uint8_t* from = units_of(p, at) + at.first / kLabelTokens * p.label_bytes;
  for (int32_t i = 128 * static_cast<int32_t>(at.thread); i < there; i += 128 * kChooseThreads) {
    dev::prefetch(from + i);
  }
}

// Scores of the block's units to shared memory, and what its rows come to, in warp r.
template <int kRows>
TAMIS_DEVICE void score_block(const ChooseParams& p, const EstimatePlace& at, int32_t begin) {
  const EstimateParams& e = p.estimate;
  score_labels<kRows>(e, at, units_of(e, at));
  dev::sync_block();
  // What rows come to: lane l takes row l % kRows of every (32 / kRows)th unit.
  constexpr int32_t kStep = kChooseThreads / kRows;
  const auto row = static_cast<int32_t>(at.thread) % kRows;
  const int32_t first = (begin > at.first ? begin - at.first : 0);
  const int32_t from = first + static_cast<int32_t>(at.thread) / kRows, end = at.last - at.first;
  const auto score = [&](int32_t unit) {
    return dev::load_shared<float>(choose_scores_at<kRows>(unit) + 4 * static_cast<uint32_t>(row));
  };
  RowStats mine;
#pragma unroll 4
  for (int32_t unit = from; unit < end; unit += kStep) {
    const float s = score(unit);
    mine.most = dev::max(mine.most, s);
    mine.least = -dev::max(-mine.least, -s);
  }
  if (e.weighted && mine.most != kEstimateNever) {
#pragma unroll 4
    for (int32_t unit = from; unit < end; unit += kStep)
      mine.sum += exp_of(score(unit) - mine.most);
  }
  mine.template join_lanes_of<kRows>();
  if (static_cast<int32_t>(at.lane) < kRows) {
    mine.put(kChoosePartsAt + 16 * (at.lane * ChooseHeld::kWarps + at.warp));
  }
  dev::sync_block();
  if (at.warp < kRows) {
    RowStats all;
    if (at.lane < ChooseHeld::kWarps) {
      all = RowStats::of(dev::load_shared<dev::Word4>(
          kChoosePartsAt + 16 * (at.warp * ChooseHeld::kWarps + at.lane)));
    }
    all.template join_lanes_of<1>();
    if (at.lane == 0) all.put(kChooseStatsAt + 16 * at.warp);
  }
}

// What every row is shifted by, and bounds of the scores after that, in every thread.
template <int kRows>
TAMIS_DEVICE void find_bounds(const ChooseParams& p, const EstimatePlace& at, float (&shift)[kRows],
                              float* low, float* high) {
  constexpr float kLn2 = 0.6931471805599453f;
  dev::sync_cluster();
  if (at.warp < kRows) {
    RowStats all;
    if (static_cast<int32_t>(at.lane) < p.estimate.blocks) {
      all = RowStats::of(dev::load_cluster4(at.lane, kChooseStatsAt + 16 * at.warp));
    }
    all.template join_lanes_of<1>();
    if (at.lane == 0) {
      all.sum = !p.estimate.weighted         ? 0.0f
                : all.most == kEstimateNever ? -kEstimateNever
                                             : all.most + dev::log2(all.sum) * kLn2;
      all.put(kChooseShiftsAt + 16 * at.warp);
    }
  }
  dev::sync_block();
  *low = *high = kEstimateNever;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const auto row = RowStats::of(dev::load_shared<dev::Word4>(kChooseShiftsAt + 16 * r));
    shift[r] = row.sum;
    if (r >= p.estimate.args.rows) continue;
    *low = dev::max(*low, row.least - shift[r]);
    *high = dev::max(*high, row.most - shift[r]);
  }
}

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
  dev::sync_cluster();
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
    dev::store_shared<uint32_t>(kChooseStateAt + 12, 0);
  }
  dev::sync_block();
  return {dev::load_shared<uint32_t>(kChooseStateAt),
          dev::load_shared<uint32_t>(kChooseStateAt + 4),
          dev::load_shared<uint32_t>(kChooseStateAt + 8)};
}

// Steps of equal width, in place of digits.
struct ChooseSteps {
  float low, scale;

  TAMIS_DEVICE uint32_t of(float x) const {  // 0: not to choose from, or below everything
    const float steps = dev::max(dev::mul(dev::add(x, -low), scale), -1.0f);
    return dev::bits_of(dev::add(steps, 8388609.0f)) - 0x4b000000u;
  }
};

// As linear_threshold; everything is counted.
TAMIS_DEVICE bool linear_cluster_threshold(const ChooseParams& p, const ChooseHeld& s,
                                           const ChooseSteps& steps, int32_t k, float* threshold,
                                           int32_t* ties) {
  const uint32_t thread = dev::thread_index(), block = dev::block_index_x();
  const Digit found = find_cluster_digit(p, k);
  if (found.digit == 0 || found.here > kChooseCandidates) return false;
  s.for_turns([&](int turn) {
    const float x = s.score(turn);
    if (steps.of(x) != found.digit) return;
    const uint32_t place = block * kChooseCandidates + dev::add_shared(kChooseStateAt + 12, 1);
#pragma unroll 1
    for (int32_t i = 0; i < p.estimate.blocks; ++i) {
      dev::store_cluster(static_cast<uint32_t>(i), kChooseCandidatesAt + 4 * place,
                         dev::bits_of(x));
    }
  });
  dev::sync_block();
  if (static_cast<int32_t>(thread) < p.estimate.blocks) {
    dev::store_cluster(thread, kChooseFoundAt + 4 * block,
                       dev::load_shared<uint32_t>(kChooseStateAt + 12));
  }
  dev::sync_cluster();
  // Candidate `thread` of all, and the others.
  const auto for_candidates = [&](const auto& fn) {
    uint32_t before = 0;
#pragma unroll 1
    for (int32_t i = 0; i < p.estimate.blocks; ++i) {
      const auto count = dev::load_shared<uint32_t>(kChooseFoundAt + 4 * static_cast<uint32_t>(i));
      const uint32_t from = kChooseCandidatesAt + 4 * static_cast<uint32_t>(i) * kChooseCandidates;
      fn(before, count, from);
      before += count;
    }
  };
  if (thread < found.here) {
    float mine = 0;
    for_candidates([&](uint32_t before, uint32_t count, uint32_t from) {
      if (thread >= before && thread < before + count) {
        mine = dev::load_shared<float>(from + 4 * (thread - before));
      }
    });
    uint32_t above = 0, equal = 0;
    for_candidates([&](uint32_t, uint32_t count, uint32_t from) {
#pragma unroll 4
      for (uint32_t i = 0; i < count; ++i) {
        const auto other = dev::load_shared<float>(from + 4 * i);
        above += other > mine ? 1 : 0;
        equal += other == mine ? 1 : 0;
      }
    });
    if (above < found.wanted && found.wanted <= above + equal) {  // all such threads say the same
      dev::store_shared<float>(kChooseStateAt + 4, mine);
      dev::store_shared<uint32_t>(kChooseStateAt + 8, found.wanted - above);
    }
  }
  dev::sync_block();
  *threshold = dev::load_shared<float>(kChooseStateAt + 4);
  *ties = static_cast<int32_t>(dev::load_shared<uint32_t>(kChooseStateAt + 8));
  return true;
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
TAMIS_DEVICE void list_block(const ChooseParams& p, ChooseHeld s, float threshold, int32_t ties,
                             const SelectTask& task, int64_t head) {
  const uint32_t block = dev::block_index_x(), thread = dev::thread_index();
  const auto page = static_cast<int32_t>(p.select.page);
  const auto before = [&](const int32_t (&all)[2], int32_t* listed, int32_t* met) {
    if (static_cast<int32_t>(thread) < p.estimate.blocks) {
      dev::store_cluster(thread, kChooseListedAt + 8 * block, static_cast<uint32_t>(all[0]));
      dev::store_cluster(thread, kChooseListedAt + 8 * block + 4, static_cast<uint32_t>(all[1]));
    }
    dev::sync_cluster();  // the last one: nobody reaches for another block after it
    for (uint32_t i = 0; i < block; ++i) {
      *listed += dev::load_shared<int32_t>(kChooseListedAt + 8 * i);
      *met += dev::load_shared<int32_t>(kChooseListedAt + 8 * i + 4);
    }
  };
  list_chosen(s, threshold, ties, before, [&](int32_t place, int32_t unit) {
    int32_t* to = p.select.index + head * p.select.index_stride + (task.sink + place) * page;
    for (int32_t i = 0; i < page; ++i) to[i] = unit * page + i;
  });
}

// Grid [blocks, heads] of kChooseThreads, the blocks of a head a cluster.
template <int kRows>
TAMIS_DEVICE void choose_units(const ChooseParams& p) {
  const EstimatePlace at(p.estimate);
  ask_units(p.estimate, at);
  dev::wait_for_previous();
  dev::allow_next();
  const int64_t head = at.head;
  const KvSelectArgs& a = p.select;
  const auto page = static_cast<int32_t>(a.page);
  const auto block = static_cast<int32_t>(dev::block_index_x());
  const SelectTask task(a, head);
  const bool chooses = task.k > 0 && task.k < task.n;
  const int32_t first = task.begin + task.sink;  // to choose from
  if (chooses || p.estimate.args.out != nullptr) {
    clear_choose_counts();
    score_block<kRows>(p, at, estimate_begin(p.estimate, at.head));
    float shift[kRows], low, high;
    find_bounds(p, at, shift, &low, &high);
    const int32_t places = kChooseThreads * p.turns;
    const ChooseHeld held{{nullptr, at.first, places}, p.turns, choose_scores_at<kRows>(places)};
    const float width = dev::add(high, -low);
    const bool spread = width > 0 && width < 3e38f;
    const ChooseSteps steps{
        low, spread ? dev::divide(static_cast<float>(kChooseSteps) - 3, width) : 0.0f};
    held.for_turns([&](int turn) {
      const int32_t place = held.place(turn), unit = at.first + place;
      float s[kRows], best = kSelectNever;
      get_scores(choose_scores_at<kRows>(place), s);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r < p.estimate.args.rows) best = dev::max(best, s[r] - shift[r]);
      }
      if (unit < task.begin) best = kSelectNever;
      if (p.estimate.args.out != nullptr && unit < at.last) {
        p.estimate.args.out[head * a.units + unit] = best;
      }
      const bool there = unit >= first && unit < first + task.n && unit < at.last;
      const float x = there ? clean_score(best) : __builtin_nanf("");
      dev::store_shared<float>(held.scores + 4 * static_cast<uint32_t>(place), x);
      if (spread) dev::count_shared(kChooseCountsAt + 4 * steps.of(x));
    });
    if (chooses) {
      float threshold = 0;
      int32_t ties = 0;
      if (!spread || !linear_cluster_threshold(p, held, steps, task.k, &threshold, &ties)) {
        radix_cluster_threshold(p, held, task.k, &threshold, &ties);
      }
      list_block(p, held, threshold, ties, task, head);
    } else {
      dev::sync_cluster();  // nobody reads what rows come to any more
    }
  }
  // Forced ones, and all where none is left out; a block its share.
  int32_t* index = a.index + head * a.index_stride;
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
