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
  const auto last = static_cast<int32_t>(dev::in_register(static_cast<uint32_t>(records - 1)));
  const uint32_t bytes = dev::in_register(static_cast<uint32_t>(e.label_bytes));
  const uint8_t* first = units_of(e, at) + at.first / kLabelTokens * e.label_bytes;
  const uint8_t* words_at =  // no word: q 0
      dev::in_register(first + 8 * (8 * (t < words ? t : 0) + group));
  const uint8_t* scales_at = dev::in_register(first + e.label_scale + 4 * group);
  const auto record = [&](const uint8_t* start, int32_t of) {  // the last one again after the last
    return start + uint64_t{static_cast<uint32_t>(of < last ? of : last)} * bytes;
  };
  const auto ask = [&](LabelPart& part, int32_t pair) {
    for (int i = 0; i < 2; ++i) {
      part.words[i] =
          dev::load_global(reinterpret_cast<const dev::Word2*>(record(words_at, 2 * pair + i)));
    }
    const auto* scales = reinterpret_cast<const uint32_t*>(
        record(scales_at, 2 * pair + static_cast<int32_t>(second)));
    part.scales = dev::load_global(scales);
    part.mins = dev::load_global(scales + kLabelTokens / 2);
  };
  LabelPart part[kAhead];
  auto pair = static_cast<int32_t>(at.warp);
  if (pair < pairs) {  // while q is looked at
#pragma unroll
    for (int i = 0; i < kAhead; ++i) ask(part[i], pair + kWarps * i);
  }
  round_queries<kChooseThreads, 1>(e, at);
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
      ask(part[i], now + kAhead * kWarps);
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
      uint32_t both[2] = {dev::pack_f16(x[0], x[1]), dev::pack_f16(x[2], x[3])};
      const uint32_t to = scores + 256 * static_cast<uint32_t>(now);
      dev::store_shared_word(to, both[0]);
      dev::store_shared_word(to + 8, both[1]);
      uint32_t low[2] = {both[0], both[1]};
      const int32_t start = at.first + 32 * now;
      if (start < begin || start + 32 > at.last) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int32_t unit = start + static_cast<int32_t>(mine) + half;
          if (unit >= begin && unit < at.last) continue;
          x[2 * half] = x[2 * half + 1] = kEstimateNever;
          both[half] = LaneStats::kNever;
          low[half] = LaneStats::kAbove;
        }
      }
      stats.add(x, both, low);
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

// The exact score of a unit, as label_scores: all loads are on their way at once.
TAMIS_DEVICE float exact_score(const ChooseParams& p, const EstimatePlace& at, int32_t unit) {
  constexpr int kWords = kChooseChannels / 8;
  const EstimateParams& e = p.estimate;
  const EstimateShared in(e);
  const auto words = static_cast<int>(e.args.units.labels.channels / 8);
  const auto rows = static_cast<int32_t>(e.args.rows);
  const int32_t lane = unit % kLabelTokens;
  const uint8_t* record = units_of(e, at) + unit / kLabelTokens * e.label_bytes;
  uint32_t word[kWords];
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const auto* from = reinterpret_cast<const uint32_t*>(record) + lane;
    word[w] = dev::load_global(from + (w < words ? w : 0) * kLabelTokens);
  }
  const auto* scales = reinterpret_cast<const uint16_t*>(record + e.label_scale) + lane;
  const float scale = dev::f16_to_f32(dev::load_global(scales));
  const float min = dev::f16_to_f32(dev::load_global(scales + kLabelTokens));
  float best = kSelectNever;
#pragma unroll 1
  for (int32_t r = 0; r < rows; ++r) {
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
    best = dev::max(
        best, dev::fma(min, dev::float_of(steps.y), product) -
                  dev::load_shared<float>(kChooseShiftsAt + 16 * static_cast<uint32_t>(r) + 4));
  }
  return best;
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
