// prefill_attention by warpgroups of sm_90a, f32 sums. Tile: 128 queries (of one head, or 64 of two
// that share keys, values and pattern) or 192 of one head, and 128 listed tokens; two or three
// warpgroups take 64 queries each, one more brings queries, keys and values, as far ahead as there
// is room: boxes of 64 neighbouring tokens, or of listed ones that were packed before
// (prefill_pack.cuh), else copies of 16 bytes.
// The scores of a tile run before the products of the tile before it with its values; warpgroups
// take turns to ask for both, so that one makes weights of its scores while the other multiplies.
// Weights stay in registers. Blocks of a pattern are a list of tokens too, so tiles are full
// whatever their size, and a tile is compared with the limits (causality, padding, spans, the
// list's end) only where one cuts it. A block takes one work after the other, whichever a ticket
// says: tiles of queries that see more tokens first, so that all end together, some heads at a time
// so that their keys and values stay in the L2 cache.
// Tensor cores bound it with boxes (two thirds of their peak), with 64 channels the weights' powers
// too; copies by threads else (half). A work costs some two tiles more, so what is done once a work
// has no division and no branches.
// Needs: as check_prefill_cuda says, no softcap; the ticket zero, which it is after. Tail: rows
// past the end of a list repeat its last one or are zeros, and their scores do not count; queries
// that do not exist are whatever lies there or zeros, and are not written.
// Tried: queries in registers, which spill; works in turns; a turn that ends with its scores, not
// when they are asked for (bench/results/gpu.md).
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
  int32_t own[2];             // tokens of the queries lane / 4 (+ 8) of the warp; -1: none
  int32_t head;               // theirs, of all batches'
  float most[2], sum[2];
  float c[kKeyTiles][4], out[kDimTiles][4];
  dev::Word4 weights[kKeyTiles / 2];

  TAMIS_DEVICE PrefillConsumer(const PrefillGroupParams& params, uint32_t thread)
      : g(params), group(thread / 128), warp(thread / 32), lane(thread % 32) {}

  TAMIS_DEVICE void release(uint32_t barrier) const {
    if (lane == 0) dev::barrier_arrive(barrier);
  }
  // c: scores of the queries and a tile.
  TAMIS_DEVICE void score(uint32_t keys) {
    const uint64_t a = dev::matrix_at(Config::kQueriesAt + 64 * 128 * dev::in_register(group));
    const uint64_t b = dev::matrix_at(keys);
    dev::fence_products();
    score_step<false>(a, b);
#pragma unroll
    for (uint32_t i = 1; i < Config::kDim / 16; ++i) {
      const uint32_t part = i / 4, at = 32 * (i % 4);
      score_step<true>(dev::further(a, part * Config::kQueryPartBytes + at),
                       dev::further(b, part * Config::kPartBytes + at));
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

  // Leaves out scores of tokens that a query does not see.
  TAMIS_DEVICE void mask(uint32_t list) {
    const auto info = dev::load_shared<dev::Word4>(list + 4 * Config::kKeys);
    const auto base = static_cast<int32_t>(info.y);
    const int32_t bottom = base > 0 ? base : 0;
    uint32_t seen[2];  // tokens from `bottom` on; those that do not exist, -1, are beyond them
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const int32_t top = g.p.causal ? own[r] : 0x7ffffffe;
      seen[r] = top < bottom ? 0 : static_cast<uint32_t>(top - bottom) + 1;
    }
    if (info.w == 0) {
      mask<false>(list, bottom, seen, 0, 0);
    } else {
      mask<true>(list, bottom, seen, static_cast<int32_t>(info.z), static_cast<int32_t>(info.w));
    }
  }
  template <bool kSpans>
  TAMIS_DEVICE void mask(uint32_t list, int32_t bottom, const uint32_t (&seen)[2], int32_t sink,
                         int32_t window) {
#pragma unroll
    for (uint32_t n = 0; n < kKeyTiles; ++n) {
      const auto pair = dev::load_shared<dev::Word2>(list + 4 * (8 * n + 2 * (lane % 4)));
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const auto token = static_cast<int32_t>(i == 0 ? pair.x : pair.y);
        const auto above = static_cast<uint32_t>(token - bottom);
#pragma unroll
        for (uint32_t r = 0; r < 2; ++r) {
          bool sees = above < seen[r];
          if constexpr (kSpans) sees = sees && (token < sink || token > own[r] - window);
          if (!sees) c[n][2 * r + i] = kNever;
        }
      }
    }
  }
  // Scores to weights, still in c; what the sums before must be scaled by, if any of the warp's.
  TAMIS_DEVICE bool soften(uint32_t list, uint32_t flags, float (&shrink)[2]) {
    if ((flags & kPrefillCut) != 0) mask(list);
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
      largest[r] = x * g.factor;
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
        x = dev::exp2(dev::fma(x, g.factor, -from[r]));
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
    const auto flags = dev::load_shared<uint32_t>(ring.info_at());
    if ((flags & kPrefillEnd) != 0) return false;
    head = dev::load_shared<int32_t>(Config::kHeadAt);
    if (g.heads_of_block == 2) head += static_cast<int32_t>(group);
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      own[r] = dev::load_shared<int32_t>(Config::kTokensAt + 4 * (16 * warp + lane / 4 + 8 * r));
      most[r] = kNever;
      sum[r] = 0;
    }
#pragma unroll
    for (auto& tile : out) tile[0] = tile[1] = tile[2] = tile[3] = 0;
    if ((flags & kPrefillNone) != 0) {
      dev::sync_warp();
      release(ring.keys_free());
      release(ring.queries_free());
      release(ring.values_free());
      ring.advance();
    } else {
      multiply(flags);
    }
    write();
    return true;
  }
  TAMIS_DEVICE void multiply(uint32_t flags) {
    float shrink[2];
    dev::fence_shared_products();
    score(ring.keys());
    dev::wait_older_products<0>(c);
    release(ring.keys_free());
    if ((flags & kPrefillLast) != 0) release(ring.queries_free());
    soften(ring.list_at(), flags, shrink);
    pack();
    PrefillStage<Config> before = ring;
    ring.advance();
#pragma unroll 1
    while ((flags & kPrefillLast) == 0) {
      dev::barrier_wait(ring.keys_there(), ring.parity);
      flags = dev::load_shared<uint32_t>(ring.info_at());
      dev::barrier_wait(before.values_there(), before.parity);
      if (!Config::kBoxes && !g.boxes) dev::fence_shared_products();
      dev::sync_warps<256>(1 + group);
      score(ring.keys());
      add_values(before.values());
      dev::arrive_warps<256>(group + 1 == Config::kGroups ? 1 : 2 + group);
      dev::wait_older_products<1>(c);
      release(ring.keys_free());
      if ((flags & kPrefillLast) != 0) release(ring.queries_free());
      const bool anew = soften(ring.list_at(), flags, shrink);
      dev::wait_older_products<0>(out);
      release(before.values_free());
      if (anew) scale_sums(shrink);
      pack();
      before = ring;
      ring.advance();
    }
    dev::barrier_wait(before.values_there(), before.parity);
    if (!Config::kBoxes && !g.boxes) dev::fence_shared_products();
    add_values(before.values());
    dev::wait_older_products<0>(out);
    release(before.values_free());
  }

  // Lane 4g + t has channels 8n + 2t and the next of row g: four lanes trade theirs of four n, so
  // that each writes 16 bytes.
  TAMIS_DEVICE void write() const {
    const PrefillParams& p = g.p;
    const uint32_t t = lane % 4;
    const int32_t batch = quotient(head, g.by_heads);
    uint8_t* const base =
        p.out + batch * p.out_batch + (head - batch * p.heads) * p.out_head + 16 * t;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float all = sum[r];
      all += dev::shuffle_xor(all, 1);
      all += dev::shuffle_xor(all, 2);
      const int32_t query = own[r] - p.first;
      const float share = all > 0 ? dev::divide(1.0f, all) : 0.0f;
      uint32_t x[kDimTiles];
#pragma unroll
      for (int n = 0; n < kDimTiles; ++n) {
        x[n] = Config::pack(out[n][2 * r] * share, out[n][2 * r + 1] * share);
      }
#pragma unroll
      for (int n = 0; n < kDimTiles; n += 4) {
        trade<1>(x[n], x[n + 1], t);
        trade<1>(x[n + 2], x[n + 3], t);
        trade<2>(x[n], x[n + 2], t);
        trade<2>(x[n + 1], x[n + 3], t);
      }
      if (own[r] >= 0) {
        uint8_t* const to = base + query * p.out_token;
#pragma unroll
        for (int n = 0; n < kDimTiles; n += 4) {
          *reinterpret_cast<dev::Word4*>(to + 16 * n) = {x[n], x[n + 1], x[n + 2], x[n + 3]};
        }
      }
      if (p.lse != nullptr && t == 0 && own[r] >= 0) {
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

// Grid [blocks] of Config::kThreads.
template <class Config>
TAMIS_DEVICE void prefill_group(const PrefillGroupParams& g) {
  const uint32_t thread = dev::thread_index();
  if (thread == 0) {
    for (uint32_t i = 0; i < Config::kStages; ++i) {
      dev::barrier_init(Config::kBarriersAt + 32 * i, 2 * 128);  // copies, and what is stored
      dev::barrier_init(Config::kBarriersAt + 32 * i + 8, 4 * Config::kGroups);
      dev::barrier_init(Config::kBarriersAt + 32 * i + 16, 128);
      dev::barrier_init(Config::kBarriersAt + 32 * i + 24, 4 * Config::kGroups);
    }
    dev::barrier_init(PrefillStage<Config>::queries_free(), 4 * Config::kGroups);
    dev::fence_barrier_init();
    if (g.boxes) {
      dev::prefetch_map(g.key_boxes);
      dev::prefetch_map(g.value_boxes);
    }
    if (g.query_boxed) dev::prefetch_map(g.query_boxes);
  }
  dev::sync_block();
  dev::wait_for_previous();
  dev::allow_next();
  if (thread >= 128 * Config::kGroups) {
    dev::keep_registers<Config::kKept>();
    PrefillLoader<Config> loader(g, thread);
    auto work = static_cast<int32_t>(dev::block_index_x());
    while (work < g.works) work = loader.load(work);
    loader.end();
  } else {
    dev::take_registers<Config::kTaken>();
    PrefillConsumer<Config> consumer(g, thread);
    if (consumer.group + 1 == Config::kGroups) {
      dev::arrive_warps<256>(1);  // the first turn is group 0's
    }
    while (consumer.attend()) {
    }
    if (consumer.group == 0) dev::sync_warps<256>(1);
  }
}

}  // namespace tamis
