// Attention over kv_page records of 32 or 64 tokens, which are never unpacked to memory; a warp
// takes 32 at a time.
//   score[t]  = sum_c (q[c] scale[c]) code[t,c]      +  sum_c q[c] min[c]
//   out[c]   += sum_t (p[t] scale[t,g]) code[t,c]    +  sum_t p[t] min[t,g]
// Codes of 4 and 8 bits are masked out of a word, two at a time, and stand in f16 numbers below the
// smallest normal one, 2^-24 a step (2^-20 the upper of two in a byte): sums are scaled back once.
// Codes of 2 bits would need factors too far apart: an OR with the bits of 1024 and a subtraction.
// Scales fold into q, once a page, and into weights; minima of keys go through the tensor cores as
// rows that are all alike, those of values as a row a group of channels.
// Range: q is taken times a power of two that brings its largest element to [kUp / 2, kUp), so a
// folded factor stays below kUp times the largest scale (2 bits: 43669, 4: 8734), which f16 holds.
// Factors and weights below 6e-5 of the largest lose bits.
// Floor: 5120 bytes a page of 4 bits at d = 128, 353 SM clocks of an H100's DRAM.
// Needs: records 16-byte aligned.
#pragma once

#include "base/cuda/codes.h"
#include "ops/sparse_attention/attend.cuh"

namespace tamis {

inline constexpr int32_t kPartTokens = 32;

template <int kBitsOf, int kDimOf, int kTokensOf, int kGroupOf>
struct PageConfig {
  static constexpr int kBits = kBitsOf;
  static constexpr int kDim = kDimOf;
  static constexpr int kTokens = kTokensOf;  // of a page
  static constexpr int kGroup = kGroupOf;    // channels that share a value scale
  static constexpr int kParts = kTokens / kPartTokens;
  static constexpr int kTogether = kBits == 4 ? kParts : 1;  // parts that are scored at once
  static constexpr int kPer = 32 / kBits;                    // codes of a word
  static constexpr int kTiles = kDim / 16;                   // of the output
  static constexpr int kGroups = kDim / kGroup;              // of value scales
  static constexpr int kHeldTiles = kTiles + 1;  // with what minima add: row i to group i
  static constexpr int kSteps = kDim / 16;       // products of 16 channels
  static constexpr int kStages = page_stages(kBits, kTokens);
  static constexpr int kWarps = page_warps(kBits);
  static constexpr int kBlocks = page_blocks(kBits);
  static constexpr int kBound = page_bound(kBits, dev::kBulkCopies);
  static constexpr bool kTail = kBits == 4;  // dense tokens are read as well
  static constexpr bool kRaw = kBits > 2;
  static constexpr float kUp = kBits == 4 ? 4 : 1;
  static constexpr float kStep = kRaw ? 0x1p24f / kUp : 1;  // what a sum of codes counts
  // f16 pairs of kUp and of what weights of an odd pair, whose codes count 16 times as much, take.
  static constexpr uint32_t kUp2 = 0x44004400u, kDown2 = 0x34003400u;
  static constexpr KvPageLayout kLayout{
      .head_dim = kDim, .tokens = kTokens, .key_bits = kBits, .value_bits = kBits, .group = kGroup};
  static constexpr uint32_t kBytes = static_cast<uint32_t>(kLayout.bytes());
  static constexpr uint32_t kValueCodes = static_cast<uint32_t>(kLayout.value_codes());
  static constexpr uint32_t kKeyScale = static_cast<uint32_t>(kLayout.key_scale());
  static constexpr uint32_t kKeyMin = static_cast<uint32_t>(kLayout.key_min());
  static constexpr uint32_t kValueScale = static_cast<uint32_t>(kLayout.value_scale());
  static constexpr uint32_t kValueMin = static_cast<uint32_t>(kLayout.value_min());
  static constexpr int32_t kSharedBytes =
      kAttentionRingAt + static_cast<int32_t>(kWarps * kStages * kBytes);
  static_assert(kBytes % 16 == 0 && kStages <= kMaxStages, "records are copied in 16 bytes");
  static_assert(kDim % (4 * kPer) == 0, "four lanes share a token's words");
  static_assert(kTokens % kPartTokens == 0 && kGroups <= 8, "whole parts, a row a group");

  static TAMIS_DEVICE int32_t hidden(const AttentionCudaParams&, const AttentionPlace&) {
    return 0;  // pages that do not count are masked
  }
  static TAMIS_DEVICE int32_t tiles_of(int32_t units) { return units; }
  static TAMIS_DEVICE int32_t channel(int tile, uint32_t group, int half) {
    return 16 * tile + 2 * static_cast<int32_t>(group) + half;
  }
  // First of the four channels that a lane holds in a step.
  static TAMIS_DEVICE uint32_t channel_of_step(int step, uint32_t t) {
    constexpr int kPerWord = kPer / 4;  // steps of a word
    return (4 * static_cast<uint32_t>(step / kPerWord) + t) * kPer +
           4 * static_cast<uint32_t>(step % kPerWord);
  }

  static TAMIS_DEVICE void pairs_of(uint32_t word, uint32_t (&pairs)[16 / kBits]) {
    if constexpr (kRaw) {
      raw_pairs<kBits>(word, pairs);
    } else {
      code_pairs<kBits>(word, pairs);
    }
  }

  // Pages on their way; see RecordRing of spmm.
  template <bool kBulk>
  struct Ring {
    const AttentionCudaParams& p;
    const uint8_t* records;
    const int32_t* index;
    int32_t next, end, step, page;
    uint32_t ring, barriers, lane, stage = 0, parity = 0;

    TAMIS_DEVICE Ring(const AttentionCudaParams& params, const AttentionPlace& at, int32_t first,
                      int32_t last, int32_t by)
        : p(params),
          records(params.keys + at.batch * params.key_batch + at.kv_head * params.key_head),
          index(params.index ? params.index + int64_t{at.head} * params.index_stride : nullptr),
          next(first),
          end(last),
          step(by),
          page(first < last ? page_of(first) : 0),
          ring(kAttentionRingAt + at.warp * kStages * kBytes),
          barriers(kAttentionBarriersAt + 8 * kMaxStages * at.warp),
          lane(at.lane) {
      if constexpr (kBulk) {
        if (lane == 0) {
          for (int s = 0; s < kStages; ++s) dev::barrier_init(barriers + 8 * s);
          dev::fence_barrier_init();
        }
        dev::sync_warp();
      }
    }

    TAMIS_DEVICE int32_t page_of(int32_t unit) const {
      if (index == nullptr) return unit;
      const int32_t id = dev::load_global(index + unit);
      return id < 0 ? 0 : id < p.units ? id : p.units - 1;
    }

    TAMIS_DEVICE void request(uint32_t s) {
      if (next < end && (!kBulk || lane == 0)) {
        const uint8_t* from = records + int64_t{page} * kBytes;
        const uint32_t to = ring + s * kBytes;
        if constexpr (kBulk) {
          dev::barrier_expect(barriers + 8 * s, kBytes);
          dev::bulk_copy(to, from, kBytes, barriers + 8 * s);
        } else {
#pragma unroll 1
          for (uint32_t i = 16 * lane; i < kBytes; i += 16 * 32) {
            dev::copy_async16(to + i, from + i, 16);
          }
        }
        next += step;
        if (next < end) page = page_of(next);
      }
      if constexpr (!kBulk) dev::commit_async();
    }
    TAMIS_DEVICE void start() {
#pragma unroll 1
      for (uint32_t s = 0; s < kStages; ++s) request(s);
    }
    TAMIS_DEVICE uint32_t wait() {
      if constexpr (kBulk) {
        dev::barrier_wait(barriers + 8 * stage, parity);
      } else {
        dev::wait_async<kStages - 1>();
        dev::sync_warp();
      }
      return ring + stage * kBytes;
    }
    TAMIS_DEVICE void release() {
      dev::sync_warp();
      request(stage);
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  };

  // The lane's channels of query row `group`, f16, times a power of two.
  struct Query {
    uint32_t q[kSteps][2];
    float factor[2];  // what makes scores of products, rows 2t and 2t + 1

    TAMIS_DEVICE Query(const AttentionCudaParams& p, const AttentionPlace& at) {
      const int32_t row = kRowsPerTile * at.row_tile + static_cast<int32_t>(at.group);
      const int64_t from = (int64_t{at.head} * p.rows + row) * kDim;
      float x[kSteps][4];
      float most = 0;
      q_fours(p, from, row < p.rows, [&](int step) { return channel_of_step(step, at.t); }, x);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          most = dev::max(most, x[step][i] < 0 ? -x[step][i] : x[step][i]);
        }
      }
      most = dev::max(most, dev::shuffle_xor(most, 1));
      most = dev::max(most, dev::shuffle_xor(most, 2));
      // most = m * 2^e, 1 <= m < 2: down has the exponent -e - 1, up undoes it.
      uint32_t exponent = dev::bits_of(most) >> 23 & 255u;
      exponent = exponent < 2 ? 127 : exponent > 251 ? 251 : exponent;
      const float down = dev::float_of((253 - exponent) << 23) * kUp;
      const float up = dev::float_of((exponent + 1) << 23) / kUp;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const uint32_t first = dev::pack_f16(x[step][0] * down, x[step][1] * down);
        const uint32_t second = dev::pack_f16(x[step][2] * down, x[step][3] * down);
        if constexpr (kBits == 4) {  // of each eight channels pairs 0 and 2, then 1 and 3
          q[step / 2 * 2][step % 2] = first;
          q[step / 2 * 2 + 1][step % 2] = second;
        } else {
          q[step][0] = first;
          q[step][1] = second;
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int32_t bits = dev::shuffle(static_cast<int32_t>(dev::bits_of(up)),
                                          4 * (2 * static_cast<int>(at.t) + r));
        factor[r] = p.scale * dev::float_of(static_cast<uint32_t>(bits));
      }
    }
  };

  // c[i], zero before: products of tokens 4g + 2i and 4g + 2i + 1 of a part with all rows, times
  // `factor`.
  static TAMIS_DEVICE void score(uint32_t record, uint32_t part, const AttentionPlace& at,
                                 const Query& query, float (&c)[2][4]) {
    uint32_t folded[kSteps][2];
    float constant[4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t channel = channel_of_step(step, at.t);
      const auto scale = dev::load_shared<dev::Word2>(record + kKeyScale + 2 * channel);
      const auto min = dev::load_shared<dev::Word2>(record + kKeyMin + 2 * channel);
      folded[step][0] = dev::mul_f16x2(query.q[step][0], scale.x);
      folded[step][1] = dev::mul_f16x2(query.q[step][1], scale.y);
      const uint32_t all[4] = {min.x, min.x, min.y, min.y};
      dev::mma_f16(constant, all, query.q[step][0], query.q[step][1]);
    }
    constexpr uint32_t kRow = 4 * kKvLanes;  // bytes of the words of one set of channels
    const uint32_t words = record + (2 * part + at.group / 4) * (kDim / kPer) * kRow +
                           16 * (at.group % 4) + at.t * kRow;
#pragma unroll
    for (int j = 0; j < kDim / (4 * kPer); ++j) {
      const auto word = dev::load_shared<dev::Word4>(words + 4 * j * kRow);
      const uint32_t token[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t low[16 / kBits], high[16 / kBits];
        pairs_of(token[2 * i], low);
        pairs_of(token[2 * i + 1], high);
#pragma unroll
        for (int s = 0; s < kPer / 4; ++s) {
          const int step = j * (kPer / 4) + s;
          const uint32_t a[4] = {low[2 * s], high[2 * s], low[2 * s + 1], high[2 * s + 1]};
          dev::mma_f16(c[i], a, folded[step][0], folded[step][1]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) c[i][j] = dev::fma(c[i][j], kStep * kUp, constant[j]);
    }
  }

  // The same for 4 bits and all parts of a page: of each eight channels, pairs 0 and 2 make one
  // product, pairs 1 and 3, whose codes count 16 times as much, another.
  static TAMIS_DEVICE void score_pairs(uint32_t record, const AttentionPlace& at,
                                       const Query& query, float (&c)[2 * kTogether][4]) {
    float even[2 * kTogether][4] = {}, odd[2 * kTogether][4] = {};
    float min_even[4] = {}, min_odd[4] = {};
    constexpr uint32_t kRow = 4 * kKvLanes, kSixteen = kDim / kPer * kRow;  // bytes of 16 tokens
    const uint32_t words = record + at.group / 4 * kSixteen + 16 * (at.group % 4) + at.t * kRow;
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      const uint32_t channels = 16 * (4 * static_cast<uint32_t>(j) + at.t);  // in bytes
      const auto scale = dev::load_shared<dev::Word4>(record + kKeyScale + channels);
      const auto min = dev::load_shared<dev::Word4>(record + kKeyMin + channels);
      const uint32_t (&q0)[2] = query.q[2 * j];
      const uint32_t (&q1)[2] = query.q[2 * j + 1];
      // Rows 0 to 7 are the minima of pairs 0 and 2, the others those of 1 and 3.
      const uint32_t all[4] = {min.x, min.y, min.z, min.w};
      dev::mma_f16(min_even, all, q0[0], q0[1]);
      dev::mma_f16(min_odd, all, q1[0], q1[1]);
      const uint32_t folded[4] = {dev::mul_f16x2(q0[0], scale.x), dev::mul_f16x2(q1[0], scale.y),
                                  dev::mul_f16x2(q0[1], scale.z), dev::mul_f16x2(q1[1], scale.w)};
#pragma unroll
      for (int part = 0; part < kTogether; ++part) {
        const auto word =
            dev::load_shared<dev::Word4>(words + static_cast<uint32_t>(part) * 2 * kSixteen +
                                         4 * static_cast<uint32_t>(j) * kRow);
        const uint32_t token[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t low[4], high[4];
          raw_pairs<4>(token[2 * i], low);
          raw_pairs<4>(token[2 * i + 1], high);
          const uint32_t first[4] = {low[0], high[0], low[2], high[2]};
          dev::mma_f16(even[2 * part + i], first, folded[0], folded[2]);
          const uint32_t second[4] = {low[1], high[1], low[3], high[3]};
          dev::mma_f16(odd[2 * part + i], second, folded[1], folded[3]);
        }
      }
    }
    const float constant[2] = {min_even[0] + min_odd[2], min_even[1] + min_odd[3]};
#pragma unroll
    for (int i = 0; i < 2 * kTogether; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        c[i][j] = dev::fma(even[i][j], kStep * kUp,
                           dev::fma(odd[i][j], kStep * kUp / 16, constant[j % 2]));
      }
    }
  }

  // The lane's codes of channels 16 tile + 2g and the next: words of tokens 8t .. 8t + 7, in pairs.
  static TAMIS_DEVICE void value_pairs(uint32_t record, uint32_t part, const AttentionPlace& at,
                                       int tile, uint32_t (&low)[4], uint32_t (&high)[4]) {
    constexpr uint32_t kRow = 4 * kKvLanes;
    const uint32_t block =
        record + kValueCodes +
        (static_cast<uint32_t>(tile) * kParts + part) * (kPartTokens / kPer) * kRow + 8 * at.group;
    if constexpr (kBits == 8) {
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const auto word = dev::load_shared<dev::Word2>(block + (2 * at.t + i) * kRow);
        uint32_t pairs[2];
        pairs_of(word.x, pairs);
        low[2 * i] = pairs[0];
        low[2 * i + 1] = pairs[1];
        pairs_of(word.y, pairs);
        high[2 * i] = pairs[0];
        high[2 * i + 1] = pairs[1];
      }
    } else if constexpr (kBits == 4) {
      const auto word = dev::load_shared<dev::Word2>(block + at.t * kRow);
      pairs_of(word.x, low);
      pairs_of(word.y, high);
    } else {
      const auto word = dev::load_shared<dev::Word2>(block + at.t / 2 * kRow);
      const uint32_t shift = 8 * (at.t % 2);
      uint32_t pairs[8];  // the second half is of the other lane and falls away
      pairs_of(word.x >> shift, pairs);
#pragma unroll
      for (int i = 0; i < 4; ++i) low[i] = pairs[i];
      pairs_of(word.y >> shift, pairs);
#pragma unroll
      for (int i = 0; i < 4; ++i) high[i] = pairs[i];
    }
  }

  // sums += weights c[i][j] of token 4g + 2i + j / 2 of the part, row 2t + j % 2, times values.
  static TAMIS_DEVICE void weigh(uint32_t record, uint32_t part, const AttentionPlace& at,
                                 const float (*c)[4], WarpSums<kHeldTiles>& s) {
    // Transposed, a lane has of row g tokens 8t + 2i + e and 8t + 4 + 2i + e in turned[i][e].
    uint32_t turned[2][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        turned[i][e] = dev::transpose(dev::pack_f16(c[i][2 * e], c[i][2 * e + 1]));
      }
    }
    const uint32_t weight[4] = {dev::byte_permute(turned[0][0], turned[0][1], 0x5410),
                                dev::byte_permute(turned[1][0], turned[1][1], 0x5410),
                                dev::byte_permute(turned[0][0], turned[0][1], 0x7632),
                                dev::byte_permute(turned[1][0], turned[1][1], 0x7632)};
    const uint32_t tokens = 2 * kPartTokens * part + 16 * at.t;  // bytes before a group's eight
    const uint32_t at_min = 2 * kTokens * (at.group % kGroups) + tokens;
    const auto minima = dev::load_shared<dev::Word4>(record + kValueMin + at_min);
    const uint32_t first[4] = {minima.x, minima.x, minima.y, minima.y};
    const uint32_t second[4] = {minima.z, minima.z, minima.w, minima.w};
    dev::mma_f16(s.weighted[kTiles], first, weight[0], weight[1]);
    dev::mma_f16(s.weighted[kTiles], second, weight[2], weight[3]);
    uint32_t scaled[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scaled[i] = kUp == 1 ? weight[i] : dev::mul_f16x2(weight[i], i % 2 == 0 ? kUp2 : kDown2);
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const auto scales = dev::load_shared<dev::Word4>(
          record + kValueScale + 2 * kTokens * static_cast<uint32_t>(g) + tokens);
      const uint32_t scale[4] = {scales.x, scales.y, scales.z, scales.w};
      uint32_t folded[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) folded[i] = dev::mul_f16x2(scaled[i], scale[i]);
#pragma unroll
      for (int i = 0; i < kGroup / 16; ++i) {
        const int tile = g * (kGroup / 16) + i;
        uint32_t low[4], high[4];
        value_pairs(record, part, at, tile, low, high);
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          const uint32_t a[4] = {low[2 * step], high[2 * step], low[2 * step + 1],
                                 high[2 * step + 1]};
          dev::mma_f16(s.weighted[tile], a, folded[2 * step], folded[2 * step + 1]);
        }
      }
    }
  }

  static TAMIS_DEVICE void add_tile(const AttentionCudaParams& p, const AttentionPlace& at,
                                    const Query& query, uint32_t record, int32_t unit,
                                    WarpSums<kHeldTiles>& s) {
    const bool masked = p.begin != nullptr || p.end != nullptr || p.bias != nullptr;
    int32_t page = unit;
    if (masked && p.index) {
      page = dev::load_global(p.index + int64_t{at.head} * p.index_stride + unit);
    }
#pragma unroll 1
    for (uint32_t part = 0; part < kParts; part += kTogether) {
      float c[2 * kTogether][4] = {};
      if constexpr (kBits == 4) {
        score_pairs(record, at, query, c);
      } else {
        score(record, part, at, query, c);
      }
      const int32_t first = page * kTokens + static_cast<int32_t>(kPartTokens * part);
      const auto id = [&](int i, int half) {
        return first + kPartTokens * (i / 2) + 4 * static_cast<int32_t>(at.group) + 2 * (i % 2) +
               half;
      };
      soften(p, at, query.factor, masked, id, c, s);
#pragma unroll
      for (uint32_t i = 0; i < kTogether; ++i) weigh(record, part + i, at, c + 2 * i, s);
    }
  }

  // What minima added to a group, which lanes 4 group + t have, belongs to all of its channels.
  static TAMIS_DEVICE void join(const AttentionPlace& at, const WarpSums<kHeldTiles>& held,
                                WarpSums<kTiles>& sums) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sums.most[r] = held.most[r];
      sums.sum[r] = held.sum[r];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const auto mine = static_cast<int32_t>(dev::bits_of(held.weighted[kTiles][r]));
        const int32_t bits = dev::shuffle(mine, 4 * g + static_cast<int>(at.t));
        const float minima = dev::float_of(static_cast<uint32_t>(bits));
#pragma unroll
        for (int i = 0; i < kGroup / 16; ++i) {
          const int tile = g * (kGroup / 16) + i;
          sums.weighted[tile][r] = dev::fma(held.weighted[tile][r], kStep, minima);
          sums.weighted[tile][2 + r] = dev::fma(held.weighted[tile][2 + r], kStep, minima);
        }
      }
    }
  }
};

}  // namespace tamis
