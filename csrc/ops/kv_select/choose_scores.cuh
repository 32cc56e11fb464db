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
  TAMIS_DEVICE void put(uint32_t at) const {
    dev::store_shared<dev::Word4>(at,
                                  {dev::bits_of(most), dev::bits_of(sum), dev::bits_of(least), 0});
  }
  TAMIS_DEVICE static RowStats of(const dev::Word4& v) {
    return {dev::float_of(v.x), dev::float_of(v.y), dev::float_of(v.z)};
  }
};

TAMIS_DEVICE float half_of_pair(uint32_t pair, int i) {
  return dev::f16_to_f32(static_cast<uint16_t>(pair >> (16 * i)));
}

TAMIS_DEVICE const uint8_t* units_of(const EstimateParams& p, const EstimatePlace& at) {
  const KvUnits& units = p.args.units;
  return static_cast<const uint8_t*>(units.data) + at.batch * units.batch_stride +
         at.kv_head * units.head_stride;
}

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

  // The exact score of a place.
  TAMIS_DEVICE float score(int32_t place) const {
    float best = kSelectNever;
#pragma unroll
    for (uint32_t others = 0; 4 * others < kRows; ++others) {
      const auto e = dev::load_shared<dev::Word4>(scores_at<true, kRows>(place, others, four_rows));
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

  TAMIS_DEVICE float score(int32_t place) const {
    uint32_t best = 0;
#pragma unroll
    for (uint32_t others = 0; 4 * others < kRows; ++others) {
      const auto pairs =
          dev::load_shared<dev::Word2>(scores_at<false, kRows>(place, others, four_rows));
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

template <bool kWhole, int kRows>
TAMIS_DEVICE ChooseBounds<kWhole, kRows> find_bounds(const ChooseParams& p,
                                                     const EstimatePlace& at) {
  constexpr float kLn2 = 0.6931471805599453f;
  dev::sync_block();
  dev::sync_cluster_unordered();
  if (at.warp < kRows) {
    RowStats all;
    if (static_cast<int32_t>(at.lane) < p.estimate.blocks) {
      all = RowStats::of(dev::load_cluster4(at.lane, kChooseStatsAt + 16 * at.warp));
    }
    all.join_lanes();
    if (at.lane == 0) {
      all.sum = !p.estimate.weighted         ? 0.0f
                : all.most == kEstimateNever ? -kEstimateNever
                                             : all.most + dev::log2(all.sum) * kLn2;
      all.put(kChooseShiftsAt + 16 * at.warp);
    }
  }
  dev::sync_block();
  ChooseBounds<kWhole, kRows> b;
  b.four_rows = four_rows<kWhole>(p);
  // Half a unit in the last place of 11 bits, in which rows' largest and smallest scores are held.
  constexpr float kHalfUnit = 1.0f / 2048, kRounded = 1.0f / (1 << 21);
  float largest = 0, apart = 0, less[kRows], first = 0;
  b.low = b.high = kEstimateNever;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const auto row = RowStats::of(dev::load_shared<dev::Word4>(kChooseShiftsAt + 16 * r));
    if (r == 0) first = row.sum;
    less[r] = dev::add(kWhole ? 0.0f : first, -row.sum);
    if constexpr (kWhole) b.shift[r] = row.sum;
    b.low = dev::max(b.low, dev::add(row.least, less[r]));
    b.high = dev::max(b.high, dev::add(row.most, less[r]));
    largest = dev::max(largest, dev::max(row.most, -row.least));
    largest = dev::max(largest, dev::max(-row.most, row.least));
    apart = dev::max(apart, dev::max(less[r], -less[r]));
  }
  if constexpr (kWhole) {
    b.slack = largest * (1.001f * kHalfUnit) + (largest + apart) * kRounded + 1e-6f;
  } else {
    b.shift = first;
#pragma unroll
    for (int r = 0; r < kRows; r += 2) b.less[r / 2] = dev::pack_f16(less[r], less[r + 1]);
    // Of e, of less and of their sum; then what is added and rounded in f32 and what f16 holds no
    // better near 0.
    first = first < 0 ? -first : first;
    b.slack =
        (largest + apart) * (2.002f * kHalfUnit) + (largest + apart + first) * kRounded + 1e-6f;
  }
  b.low -= b.slack;
  b.high += b.slack;
  return b;
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
