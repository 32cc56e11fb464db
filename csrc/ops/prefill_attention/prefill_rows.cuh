// What a warpgroup of sm_90a holds of 64 queries: scores of a tile of tokens, their weights, sums.
// prefill_wgmma.cuh and prefill_short.cuh share it.
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "ops/prefill_attention/prefill_params.h"

namespace tamis {

TAMIS_DEVICE int32_t quotient(int32_t n, Divisor d) {
  return static_cast<int32_t>((uint64_t{static_cast<uint32_t>(n)} * d.factor) >> d.shift);
}

// Config: kType, kDim, kKeys of a tile, kPartBytes and kQueryPartBytes between parts of 64 channels
// of a tile and of queries.
template <class Config>
struct PrefillRows {
  static constexpr int kKeyTiles = Config::kKeys / 8, kDimTiles = Config::kDim / 8;
  static constexpr float kNever = -__builtin_inff();
  uint32_t lane;
  int32_t own[2];  // tokens of the queries lane / 4 (+ 8) of the warp; -1: none
  int32_t head;    // theirs, of all batches'
  float most[2], sum[2];
  float c[kKeyTiles][4], out[kDimTiles][4];
  dev::Word4 weights[kKeyTiles / 2];

  TAMIS_DEVICE explicit PrefillRows(uint32_t thread) : lane(thread % 32) {}

  TAMIS_DEVICE void clear() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = kNever;
      sum[r] = 0;
    }
#pragma unroll
    for (auto& tile : out) tile[0] = tile[1] = tile[2] = tile[3] = 0;
  }

  // c: scores of the queries and a tile.
  TAMIS_DEVICE void score(uint32_t queries, uint32_t keys) {
    const uint64_t a = dev::matrix_at(queries);
    const uint64_t b = dev::matrix_at(keys);
    dev::fence_products();
    multiply_group_shared<Config::kType, false>(c, a, b);
#pragma unroll
    for (uint32_t i = 1; i < Config::kDim / 16; ++i) {
      const uint32_t part = i / 4, at = 32 * (i % 4);
      multiply_group_shared<Config::kType, true>(
          c, dev::further(a, part * Config::kQueryPartBytes + at),
          dev::further(b, part * Config::kPartBytes + at));
    }
    dev::commit_products();
  }
  // Adds weights times values.
  TAMIS_DEVICE void add_values(uint32_t values) {
    const uint64_t b = dev::matrix_of_rows(values, Config::kPartBytes);
    dev::fence_products();
#pragma unroll
    for (uint32_t i = 0; i < Config::kKeys / 16; ++i) {
      multiply_group_rows<Config::kType>(out, weights[i], dev::further(b, 2048 * i));
    }
    dev::commit_products();
  }

  // Scores to weights, still in c; what the sums before must be scaled by, if any of the warp's.
  TAMIS_DEVICE bool soften(float factor, float (&shrink)[2]) {
    // Weights are relative to `most`, which follows the largest score at some distance: what was
    // added before is scaled anew only where a score is 2^8 times beyond it.
    float largest[2];
    bool beyond = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float x = kNever;
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
        x = dev::max(x, dev::max(c[n][2 * r], c[n][2 * r + 1]));
      }
      largest[r] = x * factor;
      beyond = beyond || largest[r] > most[r] + 8;
      shrink[r] = 1;
    }
    const bool anew = dev::ballot(beyond) != 0;
    if (anew) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float x = largest[r];
        x = dev::max(x, dev::shuffle_xor(x, 1));
        x = dev::max(x, dev::shuffle_xor(x, 2));
        x = dev::max(x, most[r]);
        shrink[r] = x == kNever ? 1.0f : dev::exp2(most[r] - x);
        most[r] = x;
        sum[r] *= shrink[r];
      }
    }
    const float from[2] = {most[0] == kNever ? 0.0f : most[0], most[1] == kNever ? 0.0f : most[1]};
    float parts[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = i / 2;
        float& x = c[n][i];
        x = dev::exp2(dev::fma(x, factor, -from[r]));
        (i % 2 == 0 ? sum[r] : parts[r]) += x;
      }
    }
    sum[0] += parts[0];
    sum[1] += parts[1];
    return anew;
  }
  TAMIS_DEVICE void pack() {
#pragma unroll
    for (int i = 0; i < kKeyTiles / 2; ++i) {
      const float (&low)[4] = c[2 * i], (&high)[4] = c[2 * i + 1];
      weights[i] = {tamis::pack<Config::kType>(low[0], low[1]),
                    tamis::pack<Config::kType>(low[2], low[3]),
                    tamis::pack<Config::kType>(high[0], high[1]),
                    tamis::pack<Config::kType>(high[2], high[3])};
    }
  }
  TAMIS_DEVICE void scale_sums(const float (&shrink)[2]) {
#pragma unroll
    for (int n = 0; n < kDimTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n][i] *= shrink[i / 2];
    }
  }

  // Writes x, sums of channels from `first` on. Lane 4g + t has channels 8n + 2t and the next of
  // row g: four lanes trade theirs of four n, so that each writes 16 bytes.
  template <int kTiles>
  TAMIS_DEVICE void write(const PrefillParams& p, Divisor by_heads, const float (&x)[kTiles][4],
                          uint32_t first) const {
    const uint32_t t = lane % 4;
    const int32_t batch = quotient(head, by_heads);
    uint8_t* const base =
        p.out + batch * p.out_batch + (head - batch * p.heads) * p.out_head + 16 * t + 2 * first;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float all = sum[r];
      all += dev::shuffle_xor(all, 1);
      all += dev::shuffle_xor(all, 2);
      const int32_t query = own[r] - p.first;
      const float share = all > 0 ? dev::divide(1.0f, all) : 0.0f;
      uint32_t y[kTiles];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        y[n] = tamis::pack<Config::kType>(x[n][2 * r] * share, x[n][2 * r + 1] * share);
      }
#pragma unroll
      for (int n = 0; n < kTiles; n += 4) {
        trade<1>(y[n], y[n + 1], t);
        trade<1>(y[n + 2], y[n + 3], t);
        trade<2>(y[n], y[n + 2], t);
        trade<2>(y[n + 1], y[n + 3], t);
      }
      if (own[r] >= 0) {
        uint8_t* const to = base + query * p.out_token;
#pragma unroll
        for (int n = 0; n < kTiles; n += 4) {
          *reinterpret_cast<dev::Word4*>(to + 16 * n) = {y[n], y[n + 1], y[n + 2], y[n + 3]};
        }
      }
      if (p.lse != nullptr && first == 0 && t == 0 && own[r] >= 0) {
        constexpr float kLn2 = 0.6931471805599453f;
        p.lse[int64_t{head} * p.queries + query] =
            all > 0 ? (most[r] + dev::log2(all)) * kLn2 : kNever;
      }
    }
  }
  // Lanes that differ in that bit of t: `high` of the one without for `low` of the one with it.
  template <int kBit>
  static TAMIS_DEVICE void trade(uint32_t& low, uint32_t& high, uint32_t t) {
    const bool upper = (t & kBit) != 0;
    const uint32_t got = dev::bits_of(dev::shuffle_xor(dev::float_of(upper ? low : high), kBit));
    (upper ? low : high) = got;
  }
};

}  // namespace tamis
