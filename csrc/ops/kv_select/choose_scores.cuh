// What kv_choose knows of a head's units: their scores, in f32 or in 16 bits, what rows come to,
// bounds of the scores, and a unit's exact score.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_select/choose_params.h"
#include "ops/kv_select/estimate.cuh"
#include "ops/kv_select/select.cuh"

namespace tamis {

// A thread's units: warp w has 32 * turns neighbours, lane l of turn j the one at
// 32 * (turns * w + j) + l. A unit has sixteen or eight bytes of shared memory: scores of four rows
// in f32 or f16; where they do not tell units apart, eight of them then hold its exact score. Four
// more rows have as much behind those of all units.
struct ChooseHeld {
  static constexpr int kHeld = kChooseHeld;
  static constexpr uint32_t kWarps = kChooseThreads / 32;
  static constexpr uint32_t kCounts = kChooseCountsAt, kWarpSums = kChooseWarpsAt;
  static constexpr bool kChunks = false, kBlocks = true;
  SelectRange range;  // the block's; n: all places of its threads
  int32_t turns;

  TAMIS_DEVICE int32_t place(int turn) const {
    const auto warp = static_cast<int32_t>(dev::thread_index() / 32);
    return 32 * (turns * warp + turn) + static_cast<int32_t>(dev::thread_index() % 32);
  }
  TAMIS_DEVICE static uint32_t at(int32_t place) {
    return kChooseScoresAt + 8 * static_cast<uint32_t>(place);
  }
  TAMIS_DEVICE float score(int turn) const { return dev::load_shared<float>(at(place(turn))); }
  template <class Fn>
  TAMIS_DEVICE void for_turns(const Fn& fn) const {
#pragma unroll 4
    for (int turn = 0; turn < turns; ++turn) fn(turn);
  }
  template <class Fn>
  TAMIS_DEVICE void for_chunks(const Fn& fn) {
    fn();
  }
  // The same by numbers of registers: fn(turn) is code of its own for each of at most kMost.
  template <int kMost, class Fn>
  TAMIS_DEVICE void for_each_turn(const Fn& fn) const {
#pragma unroll
    for (int turn = 0; turn < kMost; ++turn) {
      if (turn >= turns) break;  // the same in every lane
      fn(turn);
    }
  }
};

// Where a unit's scores of the first four rows lie, or of the others: neighbours in odd records, or
// of the others, change places, so that the warp that scores two records writes to all banks.
template <bool kWhole, int kRows>
TAMIS_DEVICE uint32_t scores_at(int32_t place, uint32_t others, uint32_t all) {
  const auto of = static_cast<uint32_t>(place);
  const uint32_t turned = kRows == kChooseFewRows ? of / kLabelTokens & 1 : others;
  return kChooseScoresAt + others * all + kChooseUnitBytes<kWhole> * (of ^ turned);
}
// Bytes of the first four rows' scores.
template <bool kWhole>
TAMIS_DEVICE uint32_t four_rows(const ChooseParams& p) {
  return static_cast<uint32_t>(kChooseUnitBytes<kWhole> * kChooseThreads * p.turns);
}
// Where a thread's scores lie: those of its next turn 32 units on, so that one address and
// constants are all that turns need.
template <bool kWhole, int kRows>
struct ScoresAt {
  uint32_t four[kRows / 4];

  TAMIS_DEVICE ScoresAt(int32_t place, uint32_t four_rows) {
#pragma unroll
    for (uint32_t i = 0; i < kRows / 4; ++i) {
      four[i] = scores_at<kWhole, kRows>(place, i, four_rows);
      if (kRows == kChooseFewRows) four[i] = dev::in_register(four[i]);
    }
  }
  TAMIS_DEVICE uint32_t of(uint32_t others, int turn) const {
    return four[others] + 32 * kChooseUnitBytes<kWhole> * static_cast<uint32_t>(turn);
  }
};

// Numbers of the block in shared memory, zero at first.
inline constexpr uint32_t kKeptAt = kChooseSumsAt, kSentAt = kKeptAt + 4, kSureAt = kSentAt + 4,
                          kEarlierAt = kSureAt + 4, kMetAt = kEarlierAt + 4;

// Largest score, sum of exponentials and smallest score of a row.
struct RowStats {
  float most = kEstimateNever, sum = 0, least = -kEstimateNever;

  // Those of all lanes together.
  TAMIS_DEVICE void join_lanes() {
    const float all = from_ordered(dev::warp_max(ordered_bits(most)));
    least = -from_ordered(dev::warp_max(ordered_bits(-least)));
    sum = most == kEstimateNever ? 0.0f : sum * exp_of(most - all);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum += dev::shuffle_xor(sum, mask);
    most = all;
  }
  // Those of neighbouring lanes, one a block.
  TAMIS_DEVICE void join_blocks() {
    float all = most;
#pragma unroll
    for (int mask = kChooseBlocks / 2; mask > 0; mask /= 2) {
      all = dev::max(all, dev::shuffle_xor(all, mask));
      least = -dev::max(-least, -dev::shuffle_xor(least, mask));
    }
    sum = most == kEstimateNever ? 0.0f : sum * exp_of(most - all);
#pragma unroll
    for (int mask = kChooseBlocks / 2; mask > 0; mask /= 2) sum += dev::shuffle_xor(sum, mask);
    most = all;
  }
  TAMIS_DEVICE dev::Word4 words() const {
    return {dev::bits_of(most), dev::bits_of(sum), dev::bits_of(least), 0};
  }
  TAMIS_DEVICE void put(uint32_t at) const { dev::store_shared<dev::Word4>(at, words()); }
  TAMIS_DEVICE static RowStats of(const dev::Word4& v) {
    return {dev::float_of(v.x), dev::float_of(v.y), dev::float_of(v.z)};
  }
};

// Where a block tells this one what a row comes to in it: where candidates are ranked later.
TAMIS_DEVICE uint32_t stats_from(uint32_t row, uint32_t block) {
  return kChooseRankedAt + 16 * (kChooseBlocks * row + block);
}
static_assert(16 * kChooseBlocks * kChooseRows <= 4 * kChooseCandidates, "in place of candidates");

TAMIS_DEVICE float half_of_pair(uint32_t pair, int i) {
  return dev::f16_to_f32(static_cast<uint16_t>(pair >> (16 * i)));
}

TAMIS_DEVICE const uint8_t* units_of(const EstimateParams& p, const EstimatePlace& at) {
  const KvUnits& units = p.args.units;
  return static_cast<const uint8_t*>(units.data) + at.batch * units.batch_stride +
         at.kv_head * units.head_stride;
}

// Steps of equal width, in place of digits: 1 to kDigits - 7 between the bounds.
template <uint32_t kDigits>
struct ChooseSteps {
  static constexpr float kSteps = static_cast<float>(kDigits) - 8;
  static constexpr float kFirst = 8388608.0f;  // 2^23, above which floats are whole numbers
  float scale, width, origin;                  // steps below the first bound, a whole number

  TAMIS_DEVICE ChooseSteps(float low, float high)
      : scale(dev::divide(kSteps, high - low)),
        width(dev::mul(high - low, 1 / kSteps)),
        origin(static_cast<float>(dev::round_to_int(dev::mul(low, scale)) - 1)) {}
  TAMIS_DEVICE explicit ChooseSteps(const dev::Word4& words)
      : scale(dev::float_of(words.x)),
        width(dev::float_of(words.y)),
        origin(dev::float_of(words.z)) {}
  TAMIS_DEVICE dev::Word4 words() const {
    return {dev::bits_of(scale), dev::bits_of(width), dev::bits_of(origin), 0};
  }

  // Rounded once, so that larger scores have no smaller steps. 0: not to choose from, or below
  // everything.
  TAMIS_DEVICE uint32_t of(float x) const {
    return dev::bits_of(dev::max(dev::fma(x, scale, kFirst - origin), kFirst)) - 0x4b000000u;
  }
  // What lies half a step below the middle of a step, or above it.
  TAMIS_DEVICE float edge(uint32_t step, float half) const {
    return dev::mul(origin + static_cast<float>(step) + half, width);
  }
};

// What the first warp finds, where rows' parts lay: bounds of all scores, what they are off by and
// the first row's shift; steps; what rows are less than their scores.
inline constexpr uint32_t kBoundsAt = kChoosePartsAt, kStepsAt = kBoundsAt + 16,
                          kLessAt = kStepsAt + 16;

// What rows of the whole head come to, in every thread: shifts of the rows, bounds of all scores.
// A unit's score is max_r (e[r] - shift[r]).
template <bool kWhole, int kRows>
struct ChooseBounds;

template <int kRows>
struct ChooseBounds<true, kRows> {
  static constexpr int kTurns = choose_turns(kRows, true);
  static constexpr uint32_t kSteps = kChooseSteps / 2;
  float shift[kRows];
  float low, high, slack;  // slack: what bounds are off by
  uint32_t four_rows;      // bytes of their scores

  TAMIS_DEVICE explicit ChooseBounds(const ChooseParams& p) : four_rows(tamis::four_rows<true>(p)) {
    const auto all = dev::load_shared<dev::Word4>(kBoundsAt);
    low = dev::float_of(all.x);
    high = dev::float_of(all.y);
    slack = dev::float_of(all.z);
#pragma unroll
    for (int r = 0; r < kRows; r += 4) {
      const auto four = dev::load_shared<dev::Word4>(kLessAt + 4 * r);
      shift[r] = -dev::float_of(four.x);
      shift[r + 1] = -dev::float_of(four.y);
      shift[r + 2] = -dev::float_of(four.z);
      shift[r + 3] = -dev::float_of(four.w);
    }
  }
  // The exact score of a place, or so many turns behind it.
  TAMIS_DEVICE float score(int32_t place) const {
    return score(ScoresAt<true, kRows>(place, four_rows), 0);
  }
  TAMIS_DEVICE float score(const ScoresAt<true, kRows>& at, int turn) const {
    float best = kSelectNever;
#pragma unroll
    for (uint32_t others = 0; 4 * others < kRows; ++others) {
      const auto e = dev::load_shared<dev::Word4>(at.of(others, turn));
      const uint32_t of[4] = {e.x, e.y, e.z, e.w};
#pragma unroll
      for (uint32_t r = 0; r < 4; ++r) {
        best = dev::max(best, dev::add(dev::float_of(of[r]), -shift[4 * others + r]));
      }
    }
    return best;
  }
};

// In 16 bits max_r (e[r] + less[r]), less relative to the first row's shift: within `slack` of
// score + shift.
template <int kRows>
struct ChooseBounds<false, kRows> {
  static constexpr int kTurns = choose_turns(kRows, false);
  static constexpr uint32_t kSteps = kChooseSteps;
  static constexpr uint32_t kOne = 0x3c003c00u;
  float shift;  // of the first row
  float low, high, slack;
  uint32_t less[kRows / 2];  // pairs of f16
  uint32_t four_rows;        // bytes of their scores

  TAMIS_DEVICE explicit ChooseBounds(const ChooseParams& p)
      : four_rows(tamis::four_rows<false>(p)) {
    const auto all = dev::load_shared<dev::Word4>(kBoundsAt);
    low = dev::float_of(all.x);
    high = dev::float_of(all.y);
    slack = dev::float_of(all.z);
    shift = dev::float_of(all.w);
#pragma unroll
    for (int r = 0; r < kRows; r += 4) {
      const auto four = dev::load_shared<dev::Word4>(kLessAt + 4 * r);
      less[r / 2] = dev::pack_f16(dev::float_of(four.x), dev::float_of(four.y));
      less[r / 2 + 1] = dev::pack_f16(dev::float_of(four.z), dev::float_of(four.w));
    }
  }
  TAMIS_DEVICE float score(const ScoresAt<false, kRows>& at, int turn) const {
    uint32_t best = 0;
#pragma unroll
    for (uint32_t others = 0; 4 * others < kRows; ++others) {
      const auto pairs = dev::load_shared<dev::Word2>(at.of(others, turn));
      const uint32_t better = dev::max_f16x2(dev::fma_f16x2(pairs.x, kOne, less[2 * others]),
                                             dev::fma_f16x2(pairs.y, kOne, less[2 * others + 1]));
      best = others == 0 ? better : dev::max_f16x2(best, better);
    }
    return dev::max(half_of_pair(best, 0), half_of_pair(best, 1));
  }
};

// Whether steps of the scores are wider than what bounds leave open.
template <class Bounds>
TAMIS_DEVICE bool spread(const Bounds& b) {
  const float width = dev::add(b.high, -b.low);
  return width > 16 * b.slack && width < 3e38f;
}

// Finds them in the first warp, eight lanes a row: what one does once, all warps would do one after
// the other. kSends: blocks have sent what rows come to, else it lies in each one's memory.
template <bool kWhole, int kRows, bool kSends>
TAMIS_DEVICE void find_bounds(const ChooseParams& p, const EstimatePlace& at) {
  constexpr float kLn2 = 0.6931471805599453f;
  // Half a unit in the last place of 11 bits, in which rows' largest and smallest scores are held.
  constexpr float kHalfUnit = 1.0f / 2048, kRounded = 1.0f / (1 << 21);
  const auto blocks = static_cast<uint32_t>(p.estimate.blocks);
  const bool sent = kSends && blocks > 1;
  if (!sent) dev::sync_block();
  if constexpr (!kSends) dev::sync_cluster_unordered();
  if (at.warp == 0) {
    if (sent) dev::barrier_wait(kChooseTellingAt, 0);
    const uint32_t block = at.lane % kChooseBlocks;
    float low = kEstimateNever, high = kEstimateNever, largest = 0, apart = 0, first = 0;
#pragma unroll
    for (uint32_t four = 0; four < kRows; four += 4) {
      const uint32_t row = four + at.lane / kChooseBlocks;
      RowStats all;
      if (block < blocks) {
        all = RowStats::of(kSends ? dev::load_shared<dev::Word4>(stats_from(row, block))
                                  : dev::load_cluster4(block, kChooseStatsAt + 16 * row));
      }
      all.join_blocks();
      all.sum = !p.estimate.weighted         ? 0.0f
                : all.most == kEstimateNever ? -kEstimateNever
                                             : all.most + dev::log2(all.sum) * kLn2;
      if (!kWhole && four == 0) {
        first = dev::float_of(
            static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(dev::bits_of(all.sum)), 0)));
      }
      const float less = dev::add(first, -all.sum);
      if (block == 0) {
        all.put(kChooseShiftsAt + 16 * row);
        dev::store_shared<float>(kLessAt + 4 * row, less);
      }
      low = dev::max(low, dev::add(all.least, less));
      high = dev::max(high, dev::add(all.most, less));
      largest = dev::max(largest, dev::max(all.most, -all.least));
      largest = dev::max(largest, dev::max(-all.most, all.least));
      apart = dev::max(apart, dev::max(less, -less));
    }
#pragma unroll
    for (int mask = kChooseBlocks; mask < 32; mask *= 2) {
      low = dev::max(low, dev::shuffle_xor(low, mask));
      high = dev::max(high, dev::shuffle_xor(high, mask));
      largest = dev::max(largest, dev::shuffle_xor(largest, mask));
      apart = dev::max(apart, dev::shuffle_xor(apart, mask));
    }
    // Of whole scores that; of those of 16 bits e, less and their sum are off, then what is added
    // and rounded in f32 and what f16 holds no better near 0.
    const float size = first < 0 ? -first : first;
    const float slack = kWhole
                            ? largest * (1.001f * kHalfUnit) + (largest + apart) * kRounded + 1e-6f
                            : (largest + apart) * (2.002f * kHalfUnit) +
                                  (largest + apart + size) * kRounded + 1e-6f;
    low -= slack;
    high += slack;
    if (at.lane == 0) {
      dev::store_shared<dev::Word4>(kBoundsAt, {dev::bits_of(low), dev::bits_of(high),
                                                dev::bits_of(slack), dev::bits_of(first)});
      dev::store_shared<dev::Word4>(
          kStepsAt, ChooseSteps<ChooseBounds<kWhole, kRows>::kSteps>(low, high).words());
    }
  }
  dev::sync_block();
}

// A unit's label: all loads are on their way at once. The launch may have written it, so by no
// load_global.
struct ExactLabel {
  static constexpr int kWords = kChooseChannels / 8;
  uint32_t word[kWords];
  float scale, min;

  TAMIS_DEVICE ExactLabel(const ChooseParams& p, const EstimatePlace& at, int32_t unit) {
    const EstimateParams& e = p.estimate;
    const auto words = static_cast<int>(e.args.units.labels.channels / 8);
    const int32_t lane = unit % kLabelTokens;
    const uint8_t* record = units_of(e, at) + unit / kLabelTokens * e.label_bytes;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const auto* from = reinterpret_cast<const uint32_t*>(record) + lane;
      word[w] = from[(w < words ? w : 0) * kLabelTokens];
    }
    const auto* scales = reinterpret_cast<const uint16_t*>(record + e.label_scale) + lane;
    scale = dev::f16_to_f32(scales[0]);
    min = dev::f16_to_f32(scales[kLabelTokens]);
  }
  // The exact score by row r, as label_scores.
  TAMIS_DEVICE float score(const ChooseParams& p, int32_t r) const {
    const EstimateParams& e = p.estimate;
    const EstimateShared in(e);
    const auto words = static_cast<int>(e.args.units.labels.channels / 8);
    int32_t sum = 0;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      if (w >= words) break;
      const auto q = dev::load_shared<dev::Word2>(in.q + 4 * static_cast<uint32_t>(r * e.width) +
                                                  8 * static_cast<uint32_t>(w));
      sum = dev::dot_bytes(word[w] & 0x0f0f0f0fu, q.x, sum);
      sum = dev::dot_bytes(word[w] >> 4 & 0x0f0f0f0fu, q.y, sum);
    }
    const auto steps = dev::load_shared<dev::Word2>(in.steps + 8 * static_cast<uint32_t>(r));
    const float product =
        dev::mul(dev::mul(scale, dev::float_of(steps.x)), static_cast<float>(sum));
    return dev::fma(min, dev::float_of(steps.y), product) -
           dev::load_shared<float>(kChooseShiftsAt + 16 * static_cast<uint32_t>(r) + 4);
  }
};

// The exact score of a unit, the best of its rows'.
TAMIS_DEVICE float exact_score(const ChooseParams& p, const EstimatePlace& at, int32_t unit) {
  const ExactLabel label(p, at, unit);
  float best = kSelectNever;
#pragma unroll 1
  for (int32_t r = 0; r < static_cast<int32_t>(p.estimate.args.rows); ++r) {
    best = dev::max(best, label.score(p, r));
  }
  return best;
}

}  // namespace tamis
