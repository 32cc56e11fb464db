// prefill_attention by warpgroups of sm_90a, f32 sums. Tile: 128 queries (of one head, or 64 of two
// that share keys, values and pattern) and 128 listed tokens; two warpgroups take 64 queries each,
// a third brings queries, keys and values, as far ahead as there is room: boxes of 64 neighbouring
// tokens, or of listed ones that were packed before (prefill_pack.cuh), else copies of 16 bytes.
// The scores of a tile run before the products of the tile before it with its values; warpgroups
// take turns to ask for both, so that one makes weights of its scores while the other multiplies.
// Weights stay in registers. Blocks of a pattern are a list of tokens too, so tiles are full
// whatever their size, and a tile is compared with the limits (causality, padding, spans, the
// list's end) only where one cuts it. A block takes works in turns: tiles of queries that see more
// tokens first, some heads at a time so that their keys and values stay in the L2 cache.
// Tensor cores bound it with boxes (two thirds of their peak), copies by threads else (half).
// Needs: as check_prefill_cuda says, no softcap. Tail: rows past the end of a list repeat its last
// one or are zeros, and their scores do not count; queries that do not exist are zeros and are not
// written.
// Tried: queries in registers, which spill (bench/results/gpu.md).
// After: Shah et al. 2024 (FlashAttention-3).
#pragma once

#include "base/cuda/dev.h"
#include "ops/prefill_attention/prefill_load.cuh"
#include "ops/prefill_attention/prefill_stage.cuh"
#include "ops/prefill_attention/prefill_work.cuh"

namespace tamis {

// A warpgroup that multiplies: 64 queries.
template <class Config>
struct PrefillConsumer {
  static constexpr int kKeyTiles = Config::kKeyTiles, kDimTiles = Config::kDimTiles;
  static constexpr float kNever = -__builtin_inff();
  const PrefillGroupParams& g;
  uint32_t group, warp, lane;
  PrefillStage<Config> ring;  // the newest tile
  float factor;               // of scores
  int32_t own[2];             // tokens of the queries lane / 4 (+ 8) of the warp; -1: none
  float most[2], sum[2];
  float c[kKeyTiles][4], out[kDimTiles][4];
  dev::Word4 weights[kKeyTiles / 2];

  TAMIS_DEVICE PrefillConsumer(const PrefillGroupParams& params, uint32_t thread)
      : g(params),
        group(thread / 128),
        warp(thread / 32),
        lane(thread % 32),
        factor(params.p.scale * 1.4426950408889634f) {}

  TAMIS_DEVICE void release(uint32_t barrier) const {
    if (lane == 0) dev::barrier_arrive(barrier);
  }
  // c: scores of the queries and a tile.
  TAMIS_DEVICE void score(uint32_t keys) {
    const uint64_t a = dev::matrix_at(Config::kQueriesAt + 64 * 128 * group);
    const uint64_t b = dev::matrix_at(keys);
    dev::fence_products();
    score_step<false>(a, b);
#pragma unroll
    for (uint32_t i = 1; i < Config::kDim / 16; ++i) {
      const uint32_t at = i / 4 * Config::kPartBytes + 32 * (i % 4);
      score_step<true>(dev::further(a, at), dev::further(b, at));
    }
    dev::commit_products();
  }
  template <bool kAdds>
  TAMIS_DEVICE void score_step(uint64_t a, uint64_t b) {
    if constexpr (Config::kType == DType::bf16) {
      dev::group_shared_bf16<kAdds>(c, a, b);
    } else {
      dev::group_shared_f16<kAdds>(c, a, b);
    }
  }
  // Adds weights times values.
  TAMIS_DEVICE void add_values(uint32_t values) {
    const uint64_t b = dev::matrix_of_rows(values, Config::kPartBytes);
    dev::fence_products();
#pragma unroll
    for (uint32_t i = 0; i < Config::kKeys / 16; ++i) {
      if constexpr (Config::kType == DType::bf16) {
        dev::group_rows_bf16(out, weights[i], dev::further(b, 2048 * i));
      } else {
        dev::group_rows_f16(out, weights[i], dev::further(b, 2048 * i));
      }
    }
    dev::commit_products();
  }

  TAMIS_DEVICE void mask(uint32_t list, const dev::Word4& info) {
    const auto base = static_cast<int32_t>(info.y), sink = static_cast<int32_t>(info.z);
    const auto window = static_cast<int32_t>(info.w);
#pragma unroll
    for (uint32_t n = 0; n < kKeyTiles; ++n) {
      const auto pair = dev::load_shared<dev::Word2>(list + 4 * (8 * n + 2 * (lane % 4)));
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const auto token = static_cast<int32_t>(i == 0 ? pair.x : pair.y);
        const bool exists = token >= 0 && token >= base;
#pragma unroll
        for (uint32_t r = 0; r < 2; ++r) {
          const bool near = window == 0 || token < sink || token > own[r] - window;
          const bool sees = exists && near && (!g.p.causal || token <= own[r]);
          if (!sees) c[n][2 * r + i] = kNever;
        }
      }
    }
  }
  // Scores to weights, still in c; what the sums before must be scaled by, if any of the warp's.
  TAMIS_DEVICE bool soften(uint32_t list, const dev::Word4& info, float (&shrink)[2]) {
    if ((info.x & kPrefillCut) != 0) mask(list, info);
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
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float from = most[r] == kNever ? 0.0f : most[r];
      float parts[2] = {sum[r], 0};
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = c[n][2 * r + i];
          x = dev::exp2(dev::fma(x, factor, -from));
          parts[i] += x;
        }
      }
      sum[r] = parts[0] + parts[1];
    }
    return anew;
  }
  TAMIS_DEVICE void pack() {
#pragma unroll
    for (int i = 0; i < kKeyTiles / 2; ++i) {
      const float (&low)[4] = c[2 * i], (&high)[4] = c[2 * i + 1];
      weights[i] = {Config::pack(low[0], low[1]), Config::pack(low[2], low[3]),
                    Config::pack(high[0], high[1]), Config::pack(high[2], high[3])};
    }
  }
  TAMIS_DEVICE void scale_sums(const float (&shrink)[2]) {
#pragma unroll
    for (int n = 0; n < kDimTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n][i] *= shrink[i / 2];
    }
  }

  // The next work; false if there is none.
  TAMIS_DEVICE bool attend() {
    dev::barrier_wait(ring.keys_there(), ring.parity);  // and the queries
    const auto info = dev::load_shared<dev::Word4>(ring.info_at());
    if ((info.x & kPrefillEnd) != 0) return false;
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      own[r] = dev::load_shared<int32_t>(Config::kTokensAt + 4 * (16 * warp + lane / 4 + 8 * r));
      most[r] = kNever;
      sum[r] = 0;
    }
#pragma unroll
    for (auto& tile : out) tile[0] = tile[1] = tile[2] = tile[3] = 0;
    if ((info.x & kPrefillNone) != 0) {
      dev::sync_warp();
      release(ring.keys_free());
      release(ring.queries_free());
      release(ring.values_free());
      ring.advance();
    } else {
      multiply(info);
    }
    write(PrefillTile(g, static_cast<int32_t>(info.x / kPrefillWorkUnit)));
    return true;
  }
  TAMIS_DEVICE void multiply(dev::Word4 info) {
    float shrink[2];
    dev::fence_shared_products();
    score(ring.keys());
    dev::wait_older_products<0>(c);
    release(ring.keys_free());
    if ((info.x & kPrefillLast) != 0) release(ring.queries_free());
    soften(ring.list_at(), info, shrink);
    pack();
    PrefillStage<Config> before = ring;
    ring.advance();
#pragma unroll 1
    while ((info.x & kPrefillLast) == 0) {
      dev::barrier_wait(ring.keys_there(), ring.parity);
      info = dev::load_shared<dev::Word4>(ring.info_at());
      dev::barrier_wait(before.values_there(), before.parity);
      if (!g.boxes) dev::fence_shared_products();
      dev::sync_warps<256>(1 + group);
      score(ring.keys());
      add_values(before.values());
      dev::arrive_warps<256>(2 - group);
      dev::wait_older_products<1>(c);
      release(ring.keys_free());
      if ((info.x & kPrefillLast) != 0) release(ring.queries_free());
      const bool anew = soften(ring.list_at(), info, shrink);
      dev::wait_older_products<0>(out);
      release(before.values_free());
      if (anew) scale_sums(shrink);
      pack();
      before = ring;
      ring.advance();
    }
    dev::barrier_wait(before.values_there(), before.parity);
    if (!g.boxes) dev::fence_shared_products();
    add_values(before.values());
    dev::wait_older_products<0>(out);
    release(before.values_free());
  }

  // Lane 4g + t has channels 8n + 2t and the next of row g: four lanes trade theirs of four n, so
  // that each writes 16 bytes.
  TAMIS_DEVICE void write(const PrefillTile& work) const {
    const PrefillParams& p = g.p;
    const uint32_t t = lane % 4;
    const int32_t head = work.head_of_row(g, static_cast<int32_t>(16 * warp));
    uint8_t* const base = p.out + work.batch * p.out_batch + head * p.out_head + 16 * t;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float all = sum[r];
      all += dev::shuffle_xor(all, 1);
      all += dev::shuffle_xor(all, 2);
      const int32_t query = own[r] - p.first;
      const float share = all > 0 ? dev::divide(1.0f, all) : 0.0f;
#pragma unroll
      for (int n = 0; n < kDimTiles; n += 4) {
        uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          x[i] = Config::pack(out[n + i][2 * r] * share, out[n + i][2 * r + 1] * share);
        }
        trade<1>(x[0], x[1], t);
        trade<1>(x[2], x[3], t);
        trade<2>(x[0], x[2], t);
        trade<2>(x[1], x[3], t);
        if (own[r] >= 0) {
          *reinterpret_cast<dev::Word4*>(base + query * p.out_token + 16 * n) = {x[0], x[1], x[2],
                                                                                 x[3]};
        }
      }
      if (p.lse != nullptr && t == 0 && own[r] >= 0) {
        constexpr float kLn2 = 0.6931471805599453f;
        p.lse[(int64_t{work.batch} * p.heads + head) * p.queries + query] =
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

// Grid [blocks] of kPrefillGroupThreads.
template <class Config>
TAMIS_DEVICE void prefill_group(const PrefillGroupParams& g) {
  const uint32_t thread = dev::thread_index();
  if (thread == 0) {
    for (uint32_t i = 0; i < Config::kStages; ++i) {
      dev::barrier_init(Config::kBarriersAt + 32 * i, 2 * 128);  // copies, and what is stored
      dev::barrier_init(Config::kBarriersAt + 32 * i + 8, 8);
      dev::barrier_init(Config::kBarriersAt + 32 * i + 16, 128);
      dev::barrier_init(Config::kBarriersAt + 32 * i + 24, 8);
    }
    dev::barrier_init(PrefillStage<Config>::queries_free(), 8);
    dev::fence_barrier_init();
    if (g.boxes) {
      dev::prefetch_map(g.key_boxes);
      dev::prefetch_map(g.value_boxes);
    }
  }
  dev::sync_block();
  dev::wait_for_previous();
  dev::allow_next();
  if (thread >= 256) {
    dev::keep_registers<kPrefillGroupKept>();
    PrefillLoader<Config> loader(g, thread);
    const auto begin = static_cast<int32_t>(dev::block_index_x());
    for (int32_t work = begin; work < g.works; work += g.blocks) loader.load(work);
    loader.end();
  } else {
    dev::take_registers<kPrefillGroupTaken>();
    PrefillConsumer<Config> consumer(g, thread);
    if (consumer.group == 1) dev::arrive_warps<256>(1);  // the first turn is group 0's
    while (consumer.attend()) {
    }
    if (consumer.group == 0) dev::sync_warps<256>(1);
  }
}

}  // namespace tamis
