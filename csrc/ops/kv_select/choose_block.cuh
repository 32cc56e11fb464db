// kv_choose: a block scores its units from their labels, once, and finds what rows come to there.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_select/choose_scores.cuh"
#include "ops/kv_select/labels.cuh"

namespace tamis {

// Largest and smallest score in f16, and the sum of exponentials, of a lane's two rows. Sums are
// relative to 0: what leaves room for scores of 69 either way; beyond, a warp adds up once more,
// relative to each lane's largest.
struct LaneStats {
  static constexpr float kLog2E = 1.4426950408889634f;
  static constexpr float kRoom = 100;  // 2^100 times kChooseMost is below the largest f32
  static constexpr uint32_t kNever = 0xfc00fc00u, kAbove = 0x7c007c00u;  // -inf, inf
  uint32_t most = kNever, least = kAbove;
  float shift[2] = {0, 0}, sum[2] = {0, 0};

  // x: scores of both rows of one token, then of another one; pair: the same in f16, low: what
  // counts of it for the smallest.
  TAMIS_DEVICE void add(const float (&x)[4], const uint32_t (&pair)[2], const uint32_t (&low)[2]) {
    most = dev::max_f16x2(most, dev::max_f16x2(pair[0], pair[1]));
    least = dev::min_f16x2(least, dev::min_f16x2(low[0], low[1]));
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i % 2] += dev::exp2(dev::fma(x[i], kLog2E, -shift[i % 2]));
  }
  // What the larger score of row r is in powers of two; 0 where there is none.
  TAMIS_DEVICE float exponent(int r) const {
    const float x = half_of_pair(most, r);
    return x == kEstimateNever ? 0.0f : kLog2E * x;
  }
  TAMIS_DEVICE bool fits() const {
    const float first = exponent(0), second = exponent(1);
    return dev::max(dev::max(first, -first), dev::max(second, -second)) <= kRoom;
  }
  TAMIS_DEVICE void restart() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      shift[r] = exponent(r);
      sum[r] = 0;
    }
  }
  // Those of the lanes of a warp that have the same rows, relative to the largest score.
  template <int kRows>
  TAMIS_DEVICE void join_lanes(uint32_t lane) {
    const auto of = [lane](uint32_t pair, uint32_t mask) {
      return static_cast<uint32_t>(
          dev::shuffle(static_cast<int32_t>(pair), static_cast<int>(lane ^ mask)));
    };
#pragma unroll
    for (uint32_t mask = kRows / 2; mask < 32; mask *= 2) {
      most = dev::max_f16x2(most, of(most, mask));
      least = dev::min_f16x2(least, of(least, mask));
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] = sum[r] == 0 ? 0.0f : sum[r] * dev::exp2(shift[r] - exponent(r));
#pragma unroll
      for (int mask = kRows / 2; mask < 32; mask *= 2) sum[r] += dev::shuffle_xor(sum[r], mask);
    }
  }
};

// A lane's part of two records of 16 labels: tokens 2g and 2g + 1 of both, word t; scales and
// minima of the records whose sums the lane gets.
template <int kRecords>
struct LabelPart {
  dev::Word2 words[2];
  uint32_t scales[kRecords], mins[kRecords];
};

// A query row's channels, one a lane.
TAMIS_DEVICE void load_channels(const EstimateParams& e, const EstimatePlace& at, float (&x)[1]) {
  const KvEstimateArgs& a = e.args;
  const bool wide = a.head_dim == 128;
  const bool whole = (wide || a.head_dim == 64) && a.q_dtype != DType::f32 &&
                     reinterpret_cast<uintptr_t>(a.q) % sizeof(dev::Word2) == 0;
  if (!whole) {
    load_query(e, at, x);
    return;
  }
  const int32_t r = a.units.labels.channels, lane = static_cast<int32_t>(at.lane);
  const int32_t* ids = a.units.channels + at.kv_head * r;
  const int32_t c = lane < r ? dev::load_global(ids + lane) : 0;
  const int64_t row = int64_t{at.head} * a.rows + at.warp;
  const float value =
      element_of(a.q_dtype, wide, static_cast<const uint16_t*>(a.q) + row * a.head_dim, c);
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

template <int kChannels>
inline constexpr auto kLabelBytes =
    static_cast<uint32_t>(KvLabelLayout{.channels = kChannels}.bytes());
template <int kChannels>
inline constexpr auto kLabelScale =
    static_cast<uint32_t>(KvLabelLayout{.channels = kChannels}.scale());

// Scores of the block's units to shared memory, a warp two records at a time: codes times q in
// bytes on tensor cores: of four rows one record by the first four columns, the other one by the
// last four; of eight each record by all. Rows that do not exist as the first one. kChannels: of a
// label, 0 where that is known only then.
// Instructions are what bounds it: 75 issue slots for 32 tokens (bench/results/gpu.md), which is
// why addresses are one pointer and constants, and whole numbers become floats by what sums begin
// with: 2^23 + 2^22 in the bits of a float, to which a whole number adds units.
template <bool kWhole, int kRows, int kChannels>
TAMIS_DEVICE void score_labels(const ChooseParams& p, const EstimatePlace& at, int32_t begin,
                               LaneStats& stats) {
  constexpr int kAhead = kChannels > 0 ? 2 : 1;
  constexpr auto kWarps = static_cast<int32_t>(ChooseHeld::kWarps);
  constexpr uint32_t kCodes = 0x0f0f0f0fu;
  constexpr uint32_t kUnit = kChooseUnitBytes<kWhole>;
  constexpr bool kFew = kRows == kChooseFewRows;
  constexpr int kRecords = kFew ? 1 : 2;  // whose sums a lane gets
  constexpr float kOffset = 12582912.0f;
  const EstimateParams& e = p.estimate;
  const EstimateShared in(e);
  const uint32_t group = at.lane / 4, t = at.lane % 4, second = t / 2;
  const uint32_t words =
      static_cast<uint32_t>(kChannels > 0 ? kChannels : e.args.units.labels.channels) / 8;
  const uint32_t scale_at =
      kChannels > 0 ? kLabelScale<kChannels> : static_cast<uint32_t>(e.label_scale);
  const auto rows = static_cast<uint32_t>(e.args.rows), width = static_cast<uint32_t>(e.width);
  const uint32_t bytes = kChannels > 0 ? kLabelBytes<kChannels>
                                       : dev::in_register(static_cast<uint32_t>(e.label_bytes));
  const uint32_t stride = 2 * kWarps * bytes;  // from a warp's pair to its next
  const int32_t records = (at.last - at.first + kLabelTokens - 1) / kLabelTokens;
  // Pairs whose labels all lie there; the last one's may be new.
  const bool writes = kWhole && p.new_label != nullptr && at.last == e.args.units.units;
  const auto whole = static_cast<int32_t>(
      dev::in_register(static_cast<uint32_t>((records - (writes ? 1 : 0)) / 2)));
  const auto pairs =
      static_cast<int32_t>(dev::in_register(static_cast<uint32_t>((records + 1) / 2)));
  const auto warp = static_cast<int32_t>(at.warp);
  const uint8_t* words_at = units_of(e, at) + (at.first / kLabelTokens + 2 * int64_t{warp}) * bytes;
  const uint8_t* scales_at = words_at + scale_at + 4 * group + (kFew ? second * bytes : 0);
  words_at += 8 * (8 * (t < words ? t : 0) + group);  // no word: q 0
  const auto ask = [&](LabelPart<kRecords>& part, int32_t pair, uint32_t further) {
    if (pair < whole) {  // the same in every lane
      part.words[0] = dev::load_global(reinterpret_cast<const dev::Word2*>(words_at + further));
      part.words[1] =
          dev::load_global(reinterpret_cast<const dev::Word2*>(words_at + further + bytes));
#pragma unroll
      for (uint32_t of = 0; of < kRecords; ++of) {
        const auto* scales = reinterpret_cast<const uint32_t*>(scales_at + further + of * bytes);
        part.scales[of] = dev::load_global(scales);
        part.mins[of] = dev::load_global(scales + kLabelTokens / 2);
      }
    } else if (pair < pairs) {
      // Of one record, which stands for the other one too, or of two. The block may have written
      // there, so by no load_global.
      const uint32_t other = 2 * pair + 1 < records ? bytes : 0;
      part.words[0] = dev::load_volatile(reinterpret_cast<const dev::Word2*>(words_at + further));
      part.words[1] =
          dev::load_volatile(reinterpret_cast<const dev::Word2*>(words_at + further + other));
      const uint8_t* from = scales_at + further - (kFew ? second * (bytes - other) : 0);
#pragma unroll
      for (uint32_t of = 0; of < kRecords; ++of) {
        const auto* scales = reinterpret_cast<const uint32_t*>(from + of * other);
        part.scales[of] = dev::load_volatile(scales);
        part.mins[of] = dev::load_volatile(scales + kLabelTokens / 2);
      }
    }
  };
  // q is there before labels are on their way: behind them it comes 1 us later and more.
  if (warp < e.args.rows) {
    float x[1] = {0};
    load_channels(e, at, x);
    round_query(e, at, x, largest_of_query(x));
  }
  dev::sync_block();
  LabelPart<kRecords> part[kAhead] = {};
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    ask(part[i], warp + kWarps * i, stride * static_cast<uint32_t>(i));
  }
  float step[2], sum_of[2];
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
    const uint32_t row = 2 * (kFew ? t % 2 : t) + r;
    const uint32_t steps = in.steps + 8 * (row < rows ? row : 0);
    step[r] = dev::load_shared<float>(steps);
    sum_of[r] = dev::load_shared<float>(steps + 4);
  }
  dev::Word2 q{0, 0};
  if (t < words) {
    const uint32_t row = group % kRows;
    q = dev::load_shared<dev::Word2>(in.q + 4 * width * (row < rows ? row : 0) + 8 * t);
  }
  const bool first = !kFew || group < 4, other = !kFew || group >= 4;
  const dev::Word2 q_first{dev::in_register(first ? q.x : 0), dev::in_register(first ? q.y : 0)};
  const dev::Word2 q_second{dev::in_register(other ? q.x : 0), dev::in_register(other ? q.y : 0)};
  int32_t zero[4];  // as float: kOffset
#pragma unroll
  for (int32_t& each : zero) {
    each = static_cast<int32_t>(dev::in_register(dev::bits_of(kOffset)));
  }
  const uint32_t mine = (kFew ? 16 * second : 0) + 2 * group;  // the lane's first unit of a pair
  // Pairs that lie in [begin, at.last) as a whole.
  const int32_t inner = begin > at.first ? (begin - at.first + 31) / 32 : 0;
  const int32_t inner_end = (at.last - at.first) / 32;
  const auto inner_pairs = static_cast<uint32_t>(inner < inner_end ? inner_end - inner : 0);
  const auto take = [&](const LabelPart<kRecords>& from, int32_t pair, const uint32_t (&to)[2],
                        uint32_t further, const auto& ask_next) {
    const dev::Word2 a = from.words[0], b = from.words[1];
    const uint32_t codes[4] = {a.x & kCodes, a.y & kCodes, a.x >> 4 & kCodes, a.y >> 4 & kCodes};
    const uint32_t more[4] = {b.x & kCodes, b.y & kCodes, b.x >> 4 & kCodes, b.y >> 4 & kCodes};
    float scale[kRecords][2], min[kRecords][2];
    int32_t sum[kRecords][4];
#pragma unroll
    for (int of = 0; of < kRecords; ++of) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        scale[of][i] = half_of_pair(from.scales[of], i);
        min[of][i] = half_of_pair(from.mins[of], i);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[of][i] = zero[i];
    }
    dev::mma_bytes(sum[0], codes, q_first.x, q_first.y);
    dev::mma_bytes(sum[kRecords - 1], more, q_second.x, q_second.y);
    ask_next();  // into the registers of what is multiplied
#pragma unroll
    for (uint32_t of = 0; of < kRecords; ++of) {
      float x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float codes_sum =
            dev::add(dev::float_of(static_cast<uint32_t>(sum[of][j])), -kOffset);
        const float product = dev::mul(dev::mul(scale[of][j / 2], step[j % 2]), codes_sum);
        x[j] = dev::fma(min[of][j / 2], sum_of[j % 2], product);
      }
      const uint32_t both[2] = {dev::pack_f16(x[0], x[1]), dev::pack_f16(x[2], x[3])};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t into = to[half] + further + kLabelTokens * kUnit * of;
        if constexpr (kWhole) {
          dev::store_shared_word(
              into, dev::Word2{dev::bits_of(x[2 * half]), dev::bits_of(x[2 * half + 1])});
        } else {
          dev::store_shared_word(into, both[half]);
        }
      }
      if (static_cast<uint32_t>(pair - inner) < inner_pairs) {
        stats.add(x, both, both);
      } else {
        const auto unit = static_cast<int32_t>(mine + kLabelTokens * of);
        add_some(stats, at.first + 32 * pair + unit, begin, at.last, x, both);
      }
    }
  };
  const uint32_t scores =
      dev::shared_address(kChooseScoresAt + 32 * kUnit * static_cast<uint32_t>(warp) +
                          kUnit / 2 * (t % 2) + (kFew ? 0 : second * four_rows<kWhole>(p)));
  constexpr uint32_t kNext = 32 * kUnit * ChooseHeld::kWarps;
#pragma unroll 1
  for (bool again = false;; again = true) {
    uint32_t to[2] = {scores + kUnit * (mine + second), scores + kUnit * (mine + 1 - second)};
    int32_t pair = warp;
#pragma unroll 1
    for (; pair < pairs; pair += kAhead * kWarps) {
      words_at += kAhead * stride;
      scales_at += kAhead * stride;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int32_t now = pair + kWarps * i;
        if (now >= pairs) break;  // the same in every lane
        take(part[i], now, to, kNext * static_cast<uint32_t>(i),
             [&] { ask(part[i], now + kAhead * kWarps, stride * static_cast<uint32_t>(i)); });
      }
#pragma unroll
      for (uint32_t& each : to) each += kAhead * kNext;
    }
    if (again || dev::ballot(!stats.fits()) == 0) break;
    stats.restart();
    const int32_t back = (pair - warp) / (kAhead * kWarps) * kAhead;
    words_at -= int64_t{back} * stride;
    scales_at -= int64_t{back} * stride;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      ask(part[i], warp + kWarps * i, stride * static_cast<uint32_t>(i));
    }
  }
}

// The same, and what the block's rows come to, in warp r: for all blocks of the cluster, where
// kSends, else in this one's memory. kChannels: that labels mostly have.
template <bool kWhole, int kRows, int kChannels, bool kSends>
TAMIS_DEVICE void score_block(const ChooseParams& p, const EstimatePlace& at, int32_t begin) {
  LaneStats stats;
  if (p.estimate.args.units.labels.channels == kChannels) {
    score_labels<kWhole, kRows, kChannels>(p, at, begin, stats);
  } else {
    score_labels<kWhole, kRows, 0>(p, at, begin, stats);
  }
  stats.join_lanes<kRows>(at.lane);
  if (at.lane < kRows / 2) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const RowStats row{half_of_pair(stats.most, r), stats.sum[r], half_of_pair(stats.least, r)};
      const uint32_t of = 2 * at.lane + static_cast<uint32_t>(r);
      row.put(kChoosePartsAt + 16 * (of * ChooseHeld::kWarps + at.warp));
    }
  }
  const auto blocks = static_cast<uint32_t>(p.estimate.blocks);
  const bool sends = kSends && blocks > 1;  // where there is a cluster
  if constexpr (kSends) {
    if (at.thread == 0 && sends) dev::barrier_expect(kChooseTellingAt, 16 * kRows * blocks);
    dev::wait_cluster();  // barriers are there
  }
  dev::sync_block();
  if (at.warp < kRows) {
    static_assert(ChooseHeld::kWarps == 32, "a lane a warp");
    RowStats all = RowStats::of(dev::load_shared<dev::Word4>(
        kChoosePartsAt + 16 * (at.warp * ChooseHeld::kWarps + at.lane)));
    all.join_lanes();
    if constexpr (kSends) {
      const uint32_t to = stats_from(at.warp, dev::block_index_x());
      if (sends && at.lane < blocks) {
        dev::send_cluster(at.lane, to, all.words(), kChooseTellingAt);
      } else if (at.lane == 0) {
        all.put(to);
      }
    } else if (at.lane == 0) {
      all.put(kChooseStatsAt + 16 * at.warp);
    }
  }
}

}  // namespace tamis
