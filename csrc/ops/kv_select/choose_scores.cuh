// What kv_choose knows of a head's units: scores of 16 bits, what rows come to, bounds of the
// scores, and a unit's exact score.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_select/choose_params.h"
#include "ops/kv_select/estimate.cuh"
#include "ops/kv_select/select.cuh"

namespace tamis {

// A thread's units: warp w has 32 * turns neighbours, lane l of turn j the one at
// 32 * (turns * w + j) + l. A unit has eight bytes of shared memory: four scores as pairs of f16,
// then one score as f32.
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
};

// Numbers of the block in shared memory, zero at first.
inline constexpr uint32_t kKeptAt = kChooseSumsAt, kSentAt = kKeptAt + 4, kSureAt = kSentAt + 4,
                          kEarlierAt = kSureAt + 4, kMetAt = kEarlierAt + 4;

// Largest score, sum of exponentials and smallest score of a row.
struct RowStats {
  float most = kEstimateNever, sum = 0, least = -kEstimateNever;

  // Those of all lanes together.
  TAMIS_DEVICE void join_lanes() {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
      least = -dev::max(-least, -dev::shuffle_xor(least, mask));
    }
    tamis::join_lanes(&most, &sum);
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

// The same of a lane's two rows, largest and smallest in f16. Sums are relative to a score that is
// at most 40 below the largest.
struct LaneStats {
  static constexpr float kLog2E = 1.4426950408889634f;
  static constexpr uint32_t kNever = 0xfc00fc00u, kAbove = 0x7c007c00u;  // -inf, inf
  static constexpr uint32_t kOne = 0x3c003c00u, kForty = 0x51005100u;
  uint32_t most = kNever, least = kAbove, limit = kNever;
  float shift[2] = {0, 0}, sum[2] = {0, 0};

  // What sums count from here on relative to.
  TAMIS_DEVICE void shift_to_most() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float to = kLog2E * half_of_pair(most, r);
      sum[r] = sum[r] == 0 ? 0.0f : sum[r] * dev::exp2(shift[r] - to);
      shift[r] = to;
    }
    limit = dev::fma_f16x2(most, kOne, kForty);
  }
  // x: scores of both rows of one token, then of another one; pair: the same in f16, low: what
  // counts of it for the smallest.
  TAMIS_DEVICE void add(const float (&x)[4], const uint32_t (&pair)[2], const uint32_t (&low)[2]) {
    most = dev::max_f16x2(most, dev::max_f16x2(pair[0], pair[1]));
    least = dev::min_f16x2(least, dev::min_f16x2(low[0], low[1]));
    if (dev::max_f16x2(most, limit) != limit) shift_to_most();
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i % 2] += dev::exp2(dev::fma(x[i], kLog2E, -shift[i % 2]));
  }
  // Those of the lanes of a warp that have the same rows.
  TAMIS_DEVICE void join_lanes(uint32_t lane) {
    const auto of = [lane](uint32_t pair, uint32_t mask) {
      return static_cast<uint32_t>(
          dev::shuffle(static_cast<int32_t>(pair), static_cast<int>(lane ^ mask)));
    };
#pragma unroll
    for (uint32_t mask = 2; mask < 32; mask *= 2) {
      most = dev::max_f16x2(most, of(most, mask));
      least = dev::min_f16x2(least, of(least, mask));
    }
    shift_to_most();
#pragma unroll
    for (int mask = 2; mask < 32; mask *= 2) {
      sum[0] += dev::shuffle_xor(sum[0], mask);
      sum[1] += dev::shuffle_xor(sum[1], mask);
    }
  }
};

// A lane's part of two records of 16 labels: tokens 2g and 2g + 1 of both, word t; scales and
// minima of the record whose sums the lane gets.
struct LabelPart {
  dev::Word2 words[2];
  uint32_t scales, mins;
};

TAMIS_DEVICE const uint8_t* units_of(const EstimateParams& p, const EstimatePlace& at) {
  const KvUnits& units = p.args.units;
  return static_cast<const uint8_t*>(units.data) + at.batch * units.batch_stride +
         at.kv_head * units.head_stride;
}

// A query row's channels, one a lane. Of a row of 128 in 16 bits whole and channels are on their
// way at once: an element behind its channel is a second journey.
TAMIS_DEVICE void load_channels(const EstimateParams& e, const EstimatePlace& at, float (&x)[1]) {
  const KvEstimateArgs& a = e.args;
  const bool whole = a.head_dim == 128 && a.q_dtype != DType::f32 &&
                     reinterpret_cast<uintptr_t>(a.q) % sizeof(dev::Word2) == 0;
  if (!whole) {
    load_query(e, at, x);
    return;
  }
  const int32_t r = a.units.labels.channels, lane = static_cast<int32_t>(at.lane);
  const int32_t* ids = a.units.channels + at.kv_head * r;
  const int32_t c = lane < r ? dev::load_global(ids + lane) : 0;
  const auto* rows = static_cast<const dev::Word2*>(a.q);
  const dev::Word2 four =
      dev::load_global(rows + 32 * (int64_t{at.head} * a.rows + at.warp) + lane);
  const int32_t low = dev::shuffle(static_cast<int32_t>(four.x), c / 4);
  const int32_t high = dev::shuffle(static_cast<int32_t>(four.y), c / 4);
  const auto bits =
      static_cast<uint16_t>(static_cast<uint32_t>(c % 4 < 2 ? low : high) >> (16 * (c % 2)));
  const float value = a.q_dtype == DType::bf16 ? dev::bf16_to_f32(bits) : dev::f16_to_f32(bits);
  x[0] = lane < r ? value : 0.0f;
}

// Of a lane's two units, the first and its neighbour, those in [begin, end).
TAMIS_DEVICE void add_some(LaneStats& stats, int32_t first, int32_t begin, int32_t end,
                           const float (&x)[4], const uint32_t (&pair)[2]) {
  float some[4];
  uint32_t high[2], low[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool counts = first + half >= begin && first + half < end;
    high[half] = counts ? pair[half] : LaneStats::kNever;
    low[half] = counts ? pair[half] : LaneStats::kAbove;
    some[2 * half] = counts ? x[2 * half] : kEstimateNever;
    some[2 * half + 1] = counts ? x[2 * half + 1] : kEstimateNever;
  }
  stats.add(some, high, low);
}

// Scores of the block's units in 16 bits to shared memory, a warp two records at a time: codes
// times q in bytes on tensor cores, one record by the first four columns, the other one by the last
// four, rows that do not exist as the first one. What the block's rows come to, in warp r.
TAMIS_DEVICE void score_block(const ChooseParams& p, const EstimatePlace& at, int32_t begin) {
  constexpr int kAhead = 2;
  constexpr auto kWarps = static_cast<int32_t>(ChooseHeld::kWarps);
  constexpr uint32_t kCodes = 0x0f0f0f0fu;
  const EstimateParams& e = p.estimate;
  const EstimateShared in(e);
  const uint32_t group = at.lane / 4, t = at.lane % 4, second = t / 2;
  const auto words = static_cast<uint32_t>(e.args.units.labels.channels) / 8;
  const auto rows = static_cast<uint32_t>(e.args.rows), width = static_cast<uint32_t>(e.width);
  const int32_t records = (at.last - at.first + kLabelTokens - 1) / kLabelTokens;
  const auto pairs =
      static_cast<int32_t>(dev::in_register(static_cast<uint32_t>((records + 1) / 2)));
  const uint32_t bytes = dev::in_register(static_cast<uint32_t>(e.label_bytes));
  const uint32_t stride = dev::in_register(2 * ChooseHeld::kWarps * bytes);
  auto pair = static_cast<int32_t>(at.warp), asked = pair;
  const uint8_t* next = units_of(e, at) + (at.first / kLabelTokens + 2 * int64_t{pair}) * bytes;
  const uint8_t* words_at = next + 8 * (8 * (t < words ? t : 0) + group);  // no word: q 0
  const uint8_t* scales_at = next + e.label_scale + 4 * group;
  // The last pair again after the last, and its first record where it has no other.
  const auto ask = [&](LabelPart& part) {
    const uint32_t other = 2 * asked + 1 < records ? bytes : 0;
    part.words[0] = dev::load_global(reinterpret_cast<const dev::Word2*>(words_at));
    part.words[1] = dev::load_global(reinterpret_cast<const dev::Word2*>(words_at + other));
    const auto* scales =
        reinterpret_cast<const uint32_t*>(scales_at + (second != 0 ? other : uint32_t{0}));
    part.scales = dev::load_global(scales);
    part.mins = dev::load_global(scales + kLabelTokens / 2);
    const bool more = asked + kWarps < pairs;
    asked += more ? kWarps : 0;
    words_at += more ? stride : 0;
    scales_at += more ? stride : 0;
  };
  LabelPart part[kAhead];
  if (pair < pairs) {  // while q is looked at
#pragma unroll
    for (int i = 0; i < kAhead; ++i) ask(part[i]);
  }
  if (static_cast<int32_t>(at.warp) < e.args.rows) {
    float x[1];
    load_channels(e, at, x);
    round_query(e, at, x);
  }
  dev::sync_block();
  float step[2], whole[2];
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
    const uint32_t row = 2 * (t % 2) + r, steps = in.steps + 8 * (row < rows ? row : 0);
    step[r] = dev::load_shared<float>(steps);
    whole[r] = dev::load_shared<float>(steps + 4);
  }
  dev::Word2 q{0, 0};
  if (t < words) {
    q = dev::load_shared<dev::Word2>(in.q + 4 * width * (group % 4 < rows ? group % 4 : 0) + 8 * t);
  }
  const bool lower = group < 4;
  const dev::Word2 q_first{dev::in_register(lower ? q.x : 0), dev::in_register(lower ? q.y : 0)};
  const dev::Word2 q_second{dev::in_register(lower ? 0 : q.x), dev::in_register(lower ? 0 : q.y)};
  const uint32_t mine = 16 * second + 2 * group;  // the lane's first unit of a pair
  const uint32_t scores = dev::in_register(
      dev::shared_address(ChooseHeld::at(static_cast<int32_t>(mine)) + 4 * (t % 2)));
  LaneStats stats;
#pragma unroll 1
  for (; pair < pairs; pair += kAhead * kWarps) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int32_t now = pair + kWarps * i;
      if (now >= pairs) break;  // the same in every lane
      const dev::Word2 a = part[i].words[0], b = part[i].words[1];
      const uint32_t codes[4] = {a.x & kCodes, a.y & kCodes, a.x >> 4 & kCodes, a.y >> 4 & kCodes};
      const uint32_t more[4] = {b.x & kCodes, b.y & kCodes, b.x >> 4 & kCodes, b.y >> 4 & kCodes};
      const float scale[2] = {half_of_pair(part[i].scales, 0), half_of_pair(part[i].scales, 1)};
      const float min[2] = {half_of_pair(part[i].mins, 0), half_of_pair(part[i].mins, 1)};
      ask(part[i]);
      int32_t sum[4] = {};
      dev::mma_bytes(sum, codes, q_first.x, q_first.y);
      dev::mma_bytes(sum, more, q_second.x, q_second.y);
      float x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float product =
            dev::mul(dev::mul(scale[j / 2], step[j % 2]), static_cast<float>(sum[j]));
        x[j] = dev::fma(min[j / 2], whole[j % 2], product);
      }
      const uint32_t both[2] = {dev::pack_f16(x[0], x[1]), dev::pack_f16(x[2], x[3])};
      const uint32_t to = scores + 256 * static_cast<uint32_t>(now);
      dev::store_shared_word(to, both[0]);
      dev::store_shared_word(to + 8, both[1]);
      const int32_t start = at.first + 32 * now;
      if (start >= begin && start + 32 <= at.last) {
        stats.add(x, both, both);
      } else {
        add_some(stats, start + static_cast<int32_t>(mine), begin, at.last, x, both);
      }
    }
  }
  stats.join_lanes(at.lane);
  if (at.lane < 2) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const RowStats row{half_of_pair(stats.most, r), stats.sum[r], half_of_pair(stats.least, r)};
      const uint32_t of = 2 * at.lane + static_cast<uint32_t>(r);
      row.put(kChoosePartsAt + 16 * (of * ChooseHeld::kWarps + at.warp));
    }
  }
  dev::sync_block();
  if (at.warp < kChooseRows) {
    RowStats all;
    if (at.lane < ChooseHeld::kWarps) {
      all = RowStats::of(dev::load_shared<dev::Word4>(
          kChoosePartsAt + 16 * (at.warp * ChooseHeld::kWarps + at.lane)));
    }
    all.join_lanes();
    if (at.lane == 0) all.put(kChooseStatsAt + 16 * at.warp);
  }
}

// What rows of the whole head come to. A unit's score is max_r (e[r] - shift[r]); in 16 bits
// max_r (e[r] + less[r]), less relative to the first row's shift: within `slack` of score +
// shift[0].
struct ChooseBounds {
  float shift;  // of the first row
  float low, high, slack;
  uint32_t less[2];  // pairs of f16

  TAMIS_DEVICE float score(uint32_t first, uint32_t second) const {
    const uint32_t best = dev::max_f16x2(dev::fma_f16x2(first, LaneStats::kOne, less[0]),
                                         dev::fma_f16x2(second, LaneStats::kOne, less[1]));
    return dev::max(half_of_pair(best, 0), half_of_pair(best, 1));
  }
  // Whether steps of the scores are wider than what 16 bits leave open.
  TAMIS_DEVICE bool spread() const {
    const float width = dev::add(high, -low);
    return width > 16 * slack && width < 3e38f;
  }
};

TAMIS_DEVICE ChooseBounds find_bounds(const ChooseParams& p, const EstimatePlace& at) {
  constexpr float kLn2 = 0.6931471805599453f;
  dev::sync_block();
  dev::sync_cluster_unordered();
  if (at.warp < kChooseRows) {
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
  ChooseBounds b;
  float largest = 0, apart = 0, less[kChooseRows];
  b.low = b.high = kEstimateNever;
#pragma unroll
  for (int r = 0; r < kChooseRows; ++r) {
    const auto row = RowStats::of(dev::load_shared<dev::Word4>(kChooseShiftsAt + 16 * r));
    if (r == 0) b.shift = row.sum;
    less[r] = dev::add(b.shift, -row.sum);
    b.low = dev::max(b.low, dev::add(row.least, less[r]));
    b.high = dev::max(b.high, dev::add(row.most, less[r]));
    largest = dev::max(largest, dev::max(row.most, -row.least));
    largest = dev::max(largest, dev::max(-row.most, row.least));
    apart = dev::max(apart, dev::max(less[r], -less[r]));
  }
  b.less[0] = dev::pack_f16(less[0], less[1]);
  b.less[1] = dev::pack_f16(less[2], less[3]);
  // Half a unit in the last place of 11 bits of e, of less and of their sum; then what is added and
  // rounded in f32 and what f16 holds no better near 0.
  constexpr float kHalfUnit = 1.0f / 2048, kRounded = 1.0f / (1 << 21);
  const float first = b.shift < 0 ? -b.shift : b.shift;
  b.slack = (largest + apart) * (2.002f * kHalfUnit) + (largest + apart + first) * kRounded + 1e-6f;
  b.low -= b.slack;
  b.high += b.slack;
  return b;
}

// A unit's label: all loads are on their way at once.
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
      word[w] = dev::load_global(from + (w < words ? w : 0) * kLabelTokens);
    }
    const auto* scales = reinterpret_cast<const uint16_t*>(record + e.label_scale) + lane;
    scale = dev::f16_to_f32(dev::load_global(scales));
    min = dev::f16_to_f32(dev::load_global(scales + kLabelTokens));
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
