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
#include "ops/prefill_attention/prefill_rows.cuh"
#include "ops/prefill_attention/prefill_stage.cuh"
#include "ops/prefill_attention/prefill_work.cuh"

namespace tamis {

// A warpgroup that multiplies: 64 queries.
template <class Config>
struct PrefillConsumer : PrefillRows<Config> {
  using Rows = PrefillRows<Config>;
  using Rows::add_values, Rows::c, Rows::clear, Rows::head, Rows::kKeyTiles, Rows::kNever,
      Rows::lane, Rows::out, Rows::own, Rows::pack, Rows::scale_sums;
  const PrefillGroupParams& g;
  uint32_t group, warp;
  PrefillStage<Config> ring;  // the newest tile

  TAMIS_DEVICE PrefillConsumer(const PrefillGroupParams& params, uint32_t thread)
      : Rows(thread), g(params), group(thread / 128), warp(thread / 32) {}

  // For what only products of all of the warp have read.
  TAMIS_DEVICE void release(uint32_t barrier) const {
    if (lane == 0) dev::barrier_arrive(barrier);
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
  // Scores to weights, still in c; whether the sums before must be scaled by `shrink`.
  TAMIS_DEVICE bool soften(uint32_t list, uint32_t flags, float (&shrink)[2]) {
    if ((flags & kPrefillCut) != 0) mask(list);
    return PrefillRows<Config>::soften(g.factor, shrink);
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
    }
    clear();
    if ((flags & kPrefillNone) != 0) {
      dev::sync_warp();
      dev::barrier_arrive(ring.keys_free());
      dev::barrier_arrive(ring.queries_free());
      // By then all that load have seen the stage free; one that looked later would see it neither
      // taken nor free, and wait for ever.
      dev::barrier_wait(ring.values_there(), ring.parity);
      release(ring.values_free());
      ring.advance();
    } else {
      multiply(flags);
    }
    this->write(g.p, g.by_heads, out, 0);
    return true;
  }
  TAMIS_DEVICE void score() {
    Rows::score(Config::kQueriesAt + 64 * 128 * dev::in_register(group), ring.keys());
  }
  TAMIS_DEVICE void multiply(uint32_t flags) {
    float shrink[2];
    dev::fence_shared_products();
    score();
    dev::wait_older_products<0>(c);
    dev::barrier_arrive(ring.keys_free());
    if ((flags & kPrefillLast) != 0) dev::barrier_arrive(ring.queries_free());
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
      score();
      add_values(before.values());
      dev::arrive_warps<256>(group + 1 == Config::kGroups ? 1 : 2 + group);
      dev::wait_older_products<1>(c);
      dev::barrier_arrive(ring.keys_free());
      if ((flags & kPrefillLast) != 0) dev::barrier_arrive(ring.queries_free());
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
};

// Grid [blocks] of Config::kThreads.
template <class Config>
TAMIS_DEVICE void prefill_group(const PrefillGroupParams& g) {
  const uint32_t thread = dev::thread_index();
  if (thread == 0) {
    for (uint32_t i = 0; i < Config::kStages; ++i) {
      dev::barrier_init(Config::kBarriersAt + 32 * i, 2 * 128);  // copies, and what is stored
      dev::barrier_init(Config::kBarriersAt + 32 * i + 8, 128 * Config::kGroups);  // lists too
      dev::barrier_init(Config::kBarriersAt + 32 * i + 16, 128);
      dev::barrier_init(Config::kBarriersAt + 32 * i + 24, 4 * Config::kGroups);
    }
    dev::barrier_init(PrefillStage<Config>::queries_free(), 128 * Config::kGroups);
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
