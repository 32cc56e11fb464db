// kv_estimate: out[u] = max_r e[r,u] or max_r (e[r,u] - log sum_u exp e[r,u]), in one or two
// passes; for kv_choose by row e[r,u] itself. A block scores 1024 units for all rows of one KV
// head. Labels: a thread four tokens, their codes times q in bytes by dot products of four. Rows
// and bounds of q's own 16-bit type: a warp 16 units, from memory to registers as tensor cores take
// them; bounds meet q twice, without its positive channels and without its negative ones. Others: a
// warp a unit, 8 bytes a lane, q in shared memory. For log weights the first pass leaves, per row
// and block, the largest score and the sum of exponentials; the second adds those up in order and
// scores again: reading labels twice (8 bytes a token at r = 8) is less than writing and reading
// the scores of four rows (32). Needs: rows and bounds at multiples of 16 bytes.
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "ops/kv_select/estimate_queries.cuh"

namespace tamis {

inline constexpr int kLabelUnits = kEstimateUnits / kEstimateThreads;  // of a thread

// Scores of the units from + step i for all rows by one thread; past the last: of the last.
template <int kRows, int kUnits>
TAMIS_DEVICE void label_scores(const EstimateParams& p, const EstimatePlace& at,
                               const uint8_t* records, int32_t from, int32_t step,
                               float (&s)[kUnits][kRows]) {
  const KvEstimateArgs& a = p.args;
  const EstimateShared in(p);
  const uint8_t* record[kUnits];
  float scale[kUnits], min[kUnits];
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    int32_t unit = from + i * step;
    unit = unit < at.last ? unit : at.last - 1;
    const int32_t lane = unit % kLabelTokens;
    const uint8_t* start = records + unit / kLabelTokens * p.label_bytes;
    record[i] = start + 4 * lane;
    scale[i] = dev::f16_to_f32(
        dev::load_global(reinterpret_cast<const uint16_t*>(start + p.label_scale) + lane));
    min[i] = dev::f16_to_f32(
        dev::load_global(reinterpret_cast<const uint16_t*>(start + p.label_min) + lane));
  }
  int32_t sum[kUnits][kRows] = {};
  for (int32_t w = 0; w < a.units.labels.channels / 8; ++w) {
    uint32_t word[kUnits];
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      word[i] = dev::load_global(reinterpret_cast<const uint32_t*>(record[i]) + w * kLabelTokens);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint32_t at_q = in.q + 4 * static_cast<uint32_t>((r < a.rows ? r : 0) * p.width);
      const auto q = dev::load_shared<dev::Word2>(at_q + 8 * static_cast<uint32_t>(w));
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        sum[i][r] = dev::dot_bytes(word[i] & 0x0f0f0f0fu, q.x, sum[i][r]);
        sum[i][r] = dev::dot_bytes(word[i] >> 4 & 0x0f0f0f0fu, q.y, sum[i][r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const uint32_t steps = in.steps + 8 * static_cast<uint32_t>(r < a.rows ? r : 0);
    const auto step = dev::load_shared<float>(steps), whole = dev::load_shared<float>(steps + 4);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const float product = dev::mul(dev::mul(scale[i], step), static_cast<float>(sum[i][r]));
      s[i][r] = dev::fma(min[i], whole, product);
    }
  }
}

// The same of a row or pair of rows by a warp; every lane has them.
template <int kRows>
TAMIS_DEVICE void row_scores(const EstimateParams& p, const EstimatePlace& at, const uint8_t* units,
                             int32_t unit, float (&s)[kRows]) {
  const KvEstimateArgs& a = p.args;
  const EstimateShared in(p);
  const int64_t size = a.units.dtype == DType::f32 ? 4 : 2;
  const uint8_t* row = units + unit * a.units.unit_stride * size;
#pragma unroll
  for (int r = 0; r < kRows; ++r) s[r] = 0;
  for (auto c = 4 * static_cast<int32_t>(at.lane); c < p.width; c += 128) {
    float x[4];
    if (a.units.dtype == DType::f32) {
      const auto v = dev::load_global(reinterpret_cast<const dev::Word4*>(row + 4 * c));
      x[0] = dev::float_of(v.x);
      x[1] = dev::float_of(v.y);
      x[2] = dev::float_of(v.z);
      x[3] = dev::float_of(v.w);
    } else {
      const auto v = dev::load_global(reinterpret_cast<const dev::Word2*>(row + 2 * c));
      const uint32_t pair[2] = {v.x, v.y};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto bits = static_cast<uint16_t>(pair[i / 2] >> (16 * (i % 2)));
        x[i] = widen(a.units.dtype, bits);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r < a.rows) {
        const uint32_t from = in.q + 4 * static_cast<uint32_t>(r * p.width + c);
        const auto q = dev::load_shared<dev::Word4>(from);
        s[r] = dev::fma(dev::float_of(q.x), x[0], s[r]);
        s[r] = dev::fma(dev::float_of(q.y), x[1], s[r]);
        s[r] = dev::fma(dev::float_of(q.z), x[2], s[r]);
        s[r] = dev::fma(dev::float_of(q.w), x[3], s[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r < a.rows) {
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) s[r] += dev::shuffle_xor(s[r], mask);
      s[r] *= a.scale;
    }
  }
}

// The same of 16 rows or bounds from `first` on by a warp, for q of their type: lane l has unit
// first + l % 16; past the last: the last. A lane's 16 bytes are channels of two products.
template <int kRows>
TAMIS_DEVICE void product_scores(const EstimateParams& p, const EstimatePlace& at,
                                 const uint8_t* units, int32_t first, float (&s)[kRows]) {
  constexpr int kAhead = 4;  // loads of a row on their way
  const KvEstimateArgs& a = p.args;
  const EstimateShared in(p);
  const uint32_t group = at.lane / 4, t = at.lane % 4;
  const auto row_of = [&](uint32_t unit) {
    const int32_t u = first + static_cast<int32_t>(unit);
    return units + (u < at.last ? u : at.last - 1) * a.units.unit_stride * 2 + 16 * t;
  };
  const uint8_t *low = row_of(group), *high = row_of(group + 8);
  const bool exists = static_cast<int32_t>(group) < a.rows;
  const uint32_t q = in.q + (exists ? group : 0) * product_pitch(p) + 16 * t;
  const bool bf16 = a.q_dtype == DType::bf16;
  const auto multiply = [&](float (&c)[4], const uint32_t (&x)[4], uint32_t q0, uint32_t q1) {
    bf16 ? tamis::multiply<DType::bf16>(c, x, q0, q1) : tamis::multiply<DType::f16>(c, x, q0, q1);
  };
  float c[4] = {};
#pragma unroll 1
  for (int32_t from = 0; from < p.width; from += 32 * kAhead) {
    dev::Word4 x[kAhead][2];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int32_t channel = from + 32 * i;
      if (channel >= p.width) break;
      x[i][0] = dev::load_global(reinterpret_cast<const dev::Word4*>(low + 2 * channel));
      x[i][1] = dev::load_global(reinterpret_cast<const dev::Word4*>(high + 2 * channel));
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int32_t channel = from + 32 * i;
      if (channel >= p.width) break;
      const auto b = dev::load_shared<dev::Word4>(q + 2 * static_cast<uint32_t>(channel));
      const uint32_t even[4] = {x[i][0].x, x[i][1].x, x[i][0].y, x[i][1].y};
      multiply(c, even, b.x, b.y);
      const uint32_t odd[4] = {x[i][0].z, x[i][1].z, x[i][0].w, x[i][1].w};
      multiply(c, odd, b.z, b.w);
    }
  }
  // c: rows 2t and 2t + 1 of units `group` and 8 more.
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int lane = static_cast<int>(at.lane % 8) * 4 + r / 2;
    const auto of = [&](float x) {
      return dev::float_of(
          static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(dev::bits_of(x)), lane)));
    };
    const float upper = of(c[r % 2]), lower = of(c[2 + r % 2]);
    s[r] = (at.lane % 16 < 8 ? upper : lower) * a.scale;
  }
}

// exp(x), for sums that end in a logarithm.
TAMIS_DEVICE float exp_of(float x) {
  constexpr float kLog2E = 1.4426950408889634f;
  return dev::exp2(x * kLog2E);
}

// Largest of, and sum of exp(s - largest) over, what the lanes of a warp have; in every lane.
TAMIS_DEVICE void join_lanes(float* most, float* sum) {
  float all = *most;
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) all = dev::max(all, dev::shuffle_xor(all, mask));
  *sum = *most == kEstimateNever ? 0.0f : *sum * exp_of(*most - all);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) *sum += dev::shuffle_xor(*sum, mask);
  *most = all;
}

// Pass 1's answer: what this thread has of each row becomes the block's.
template <int kRows>
TAMIS_DEVICE void put_stats(const EstimateParams& p, const EstimatePlace& at, float (&most)[kRows],
                            float (&sum)[kRows]) {
  const EstimateShared in(p);
  constexpr uint32_t kWarps = kEstimateThreads / 32;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    join_lanes(&most[r], &sum[r]);
    if (at.lane == 0 && r < p.args.rows) {
      const uint32_t to = in.parts + 8 * (static_cast<uint32_t>(r) * kWarps + at.warp);
      dev::store_shared<float>(to, most[r]);
      dev::store_shared<float>(to + 4, sum[r]);
    }
  }
  dev::sync_block();
  for (auto r = static_cast<int32_t>(at.thread); r < p.args.rows; r += kEstimateThreads) {
    const uint32_t from = in.parts + 8 * static_cast<uint32_t>(r) * kWarps;
    float all = kEstimateNever, total = 0;
    for (uint32_t w = 0; w < kWarps; ++w) {
      all = dev::max(all, dev::load_shared<float>(from + 8 * w));
    }
    for (uint32_t w = 0; w < kWarps; ++w) {
      const auto theirs = dev::load_shared<float>(from + 8 * w);
      if (theirs == kEstimateNever) continue;
      total += dev::load_shared<float>(from + 8 * w + 4) * exp_of(theirs - all);
    }
    float* to =
        p.stats + ((int64_t{at.head} * p.args.rows + r) * p.blocks + dev::block_index_x()) * 2;
    to[0] = all;
    to[1] = total;
  }
}

// Pass 2: the logarithm of each row's sum, a warp a row; +inf where nothing counts.
TAMIS_DEVICE void find_shifts(const EstimateParams& p, const EstimatePlace& at,
                              uint32_t shifts_at) {
  constexpr float kLn2 = 0.6931471805599453f;
  if (at.warp < p.args.rows) {
    const float* stats = p.stats + (int64_t{at.head} * p.args.rows + at.warp) * p.blocks * 2;
    float most = kEstimateNever, sum = 0;
    for (auto b = static_cast<int32_t>(at.lane); b < p.blocks; b += 32) {
      const float theirs = dev::load_volatile(stats + 2 * b);
      const float all = dev::max(most, theirs);
      if (all == kEstimateNever) continue;
      sum =
          (most == kEstimateNever ? 0.0f : sum * exp_of(most - all)) +
          (theirs == kEstimateNever ? 0.0f
                                    : dev::load_volatile(stats + 2 * b + 1) * exp_of(theirs - all));
      most = all;
    }
    join_lanes(&most, &sum);
    if (at.lane == 0) {
      dev::store_shared<float>(shifts_at + 4 * at.warp, most == kEstimateNever
                                                            ? -kEstimateNever
                                                            : most + dev::log2(sum) * kLn2);
    }
  }
  dev::sync_block();
}

// Pass 1 (kStats) of log weights, or the only or second pass. Grid [blocks, heads].
template <int kRows, bool kStats>
TAMIS_DEVICE void score_units(const EstimateParams& p) {
  const KvEstimateArgs& a = p.args;
  const EstimatePlace at(p);
  const EstimateShared in(p);
  const bool labels = a.units.kind == KvSummary::labels;
  const int64_t size = labels ? 1 : a.units.dtype == DType::f32 ? 4 : 2;
  const uint8_t* units =
      static_cast<const uint8_t*>(a.units.data) +
      (at.batch * a.units.batch_stride + at.kv_head * a.units.head_stride) * size;
  {  // Into the L2 cache, where a kernel that still writes some finds them.
    const int64_t each = a.units.unit_stride * size, records = p.label_bytes;
    const uint8_t* from = units + (labels ? at.first / kLabelTokens * records : at.first * each);
    int64_t there = (at.last - at.first + kLabelTokens - 1) / kLabelTokens * records;
    if (!labels) {
      there = (at.last - at.first - 1) * each + p.width * size;
      there = there < kEstimateAsked ? there : kEstimateAsked;
    }
    for (int64_t i = 128 * int64_t{at.thread}; i < there; i += 128 * kEstimateThreads) {
      dev::prefetch(from + i);
    }
  }
  dev::wait_for_previous();
  dev::allow_next();
  float shift[kRows] = {};
  if (!kStats && p.weighted) {
    find_shifts(p, at, in.parts);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      shift[r] = dev::load_shared<float>(in.parts + 4 * static_cast<uint32_t>(r < a.rows ? r : 0));
    }
  }
  labels       ? round_queries<kEstimateThreads>(p, at)
  : p.products ? split_queries(p, at)
               : widen_queries<kEstimateThreads>(p, at);
  dev::sync_block();
  const int32_t begin = estimate_begin(p, at.head);
  float most[kRows], sum[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    most[r] = kEstimateNever;
    sum[r] = 0;
  }
  // Scores of kUnits units, of which some count: into the sums, or their largest out.
  const auto take = [&]<int kUnits>(const int32_t (&unit)[kUnits],
                                    const float (&s)[kUnits][kRows]) {
    if constexpr (kStats) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float all = most[r];
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
          if (unit[i] >= begin && unit[i] < at.last) all = dev::max(all, s[i][r]);
        }
        if (all == kEstimateNever) continue;
        float total = sum[r] * exp_of(most[r] - all);
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
          total += unit[i] >= begin && unit[i] < at.last ? exp_of(s[i][r] - all) : 0.0f;
        }
        sum[r] = total;
        most[r] = all;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        if (p.by_row) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            if (r >= a.rows || unit[i] >= at.last) continue;
            const int64_t row = int64_t{at.head} * a.rows + r;
            a.out[row * a.units.units + unit[i]] = unit[i] >= begin ? s[i][r] : kEstimateNever;
          }
          continue;
        }
        float best = kEstimateNever;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (r < a.rows && unit[i] >= begin) best = dev::max(best, s[i][r] - shift[r]);
        }
        if (unit[i] < at.last) a.out[int64_t{at.head} * a.units.units + unit[i]] = best;
      }
    }
  };
  if (labels) {
    for (int32_t from = at.first; from < at.last; from += kEstimateUnits) {
      float s[kLabelUnits][kRows];
      int32_t unit[kLabelUnits];
      label_scores(p, at, units, from + static_cast<int32_t>(at.thread), kEstimateThreads, s);
#pragma unroll
      for (int i = 0; i < kLabelUnits; ++i) {
        unit[i] = from + static_cast<int32_t>(at.thread) + i * kEstimateThreads;
      }
      take(unit, s);
    }
  } else if (p.products) {
    for (int32_t u = at.first + 16 * static_cast<int32_t>(at.warp); u < at.last;
         u += 16 * (kEstimateThreads / 32)) {
      float s[1][kRows];
      product_scores<kRows>(p, at, units, u, s[0]);
      const int32_t unit[1] = {u + static_cast<int32_t>(at.lane)};
      if (at.lane < 16) take(unit, s);
    }
  } else {
#pragma unroll 2
    for (int32_t u = at.first + static_cast<int32_t>(at.warp); u < at.last;
         u += kEstimateThreads / 32) {
      float s[1][kRows];
      row_scores<kRows>(p, at, units, u, s[0]);
      const int32_t unit[1] = {u};
      if (at.lane == 0) take(unit, s);
    }
  }
  if constexpr (kStats) put_stats<kRows>(p, at, most, sum);
}

// Calls run(a tag with the number of rows that a kernel is made for).
template <int N>
struct EstimateTag {
  static constexpr int kRows = N;
};
template <class Run>
auto with_estimate_rows(int64_t rows, const Run& run) {
  return rows <= 1   ? run(EstimateTag<1>{})
         : rows <= 4 ? run(EstimateTag<4>{})
                     : run(EstimateTag<kEstimateRows>{});
}

}  // namespace tamis
