// How the p24 product ends: warps of a row tile leave what they have in shared memory, every warp
// of the block adds some of it up, and parts of k (panels, or halves of each) meet as a cluster or
// through memory.
#pragma once

#include <cstdint>

#include "base/cuda/dev.h"
#include "base/cuda/ticket.h"
#include "ops/spmm/p24_params.h"
#include "ops/spmm/tile_sums.cuh"

namespace tamis {

// Leaves a warp's sums for those who add up: [warps of the block, token tiles, lanes, 4].
template <class Config>
TAMIS_DEVICE void leave_p24_sums(const SpmmP24Params& p, uint32_t warp, uint32_t lane,
                                 const float (&c)[Config::kTokenTiles][4]) {
  if (p.warp_sums_at == kP24XAt) dev::sync_block();  // nobody reads x any more
  const uint32_t at =
      static_cast<uint32_t>(p.warp_sums_at) + 512 * Config::kTokenTiles * warp + 16 * lane;
  if (warp < static_cast<uint32_t>(p.block_tiles * p.warps)) {
#pragma unroll
    for (int t = 0; t < Config::kTokenTiles; ++t) {
      dev::store_shared<dev::Word4>(at + 512 * t, {dev::bits_of(c[t][0]), dev::bits_of(c[t][1]),
                                                   dev::bits_of(c[t][2]), dev::bits_of(c[t][3])});
    }
  }
  dev::sync_block();
}

// Adds up `count` sums of a lane, `stride_bytes` apart in shared memory, first to last.
TAMIS_DEVICE void add_p24_sums(uint32_t at, uint32_t stride_bytes, int32_t count, float (&sum)[4]) {
#pragma unroll 4
  for (int32_t i = 0; i < count; ++i, at += stride_bytes) {
    const auto v = dev::load_shared<dev::Word4>(at);
    sum[0] += dev::float_of(v.x);
    sum[1] += dev::float_of(v.y);
    sum[2] += dev::float_of(v.z);
    sum[3] += dev::float_of(v.w);
  }
}

// Calls fn(i, sum) with what the warps of a row tile add up to of 8 tokens, i = tile of the block *
// token tiles + token tile: every warp of the block takes some.
template <class Config, class Fn>
TAMIS_DEVICE void for_p24_sums(const SpmmP24Params& p, uint32_t warp, uint32_t lane, const Fn& fn) {
  constexpr uint32_t kTiles = Config::kTokenTiles;
  for (uint32_t i = warp; i < static_cast<uint32_t>(p.block_tiles) * kTiles;
       i += static_cast<uint32_t>(p.block_warps)) {
    const uint32_t first = i / kTiles * static_cast<uint32_t>(p.warps) * kTiles + i % kTiles;
    float sum[4] = {};
    add_p24_sums(static_cast<uint32_t>(p.warp_sums_at) + 512 * first + 16 * lane, 512 * kTiles,
                 p.warps, sum);
    fn(i, sum);
  }
}

template <class Config>
TAMIS_DEVICE void write_p24_sums(const SpmmP24Params& p, int32_t block, uint32_t i, uint32_t lane,
                                 const float (&sum)[4]) {
  constexpr uint32_t kTiles = Config::kTokenTiles;
  write_sums<Config>(p, 16 * (block * p.block_tiles + static_cast<int32_t>(i / kTiles)),
                     static_cast<int32_t>(8 * (i % kTiles)), lane, sum);
}

// Adds up and writes the sums of row tiles whose panels are a cluster: each block has some of them,
// 8 tokens of a row tile each, which all panels send to it.
template <class Config>
TAMIS_DEVICE void meet_p24_cluster(const SpmmP24Params& p, uint32_t warp, uint32_t lane) {
  const auto panels = static_cast<uint32_t>(p.parts), sums_at = static_cast<uint32_t>(p.sums_at);
  const uint32_t block = dev::block_index_x(), panel = block % panels;
  const auto sum_at = [&](uint32_t i, uint32_t of) {  // of a panel, in the block that adds them
    return sums_at + 512 * (i / panels * panels + of) + 16 * lane;
  };
  dev::wait_cluster();
  for_p24_sums<Config>(p, warp, lane, [&](uint32_t i, const float (&sum)[4]) {
    dev::send_cluster(i % panels, sum_at(i, panel),
                      dev::Word4{dev::bits_of(sum[0]), dev::bits_of(sum[1]), dev::bits_of(sum[2]),
                                 dev::bits_of(sum[3])},
                      kP24BarrierAt);
  });
  // A warp of the block after another takes its sums.
  for (uint32_t i = panel + warp * panels;
       i < static_cast<uint32_t>(p.block_tiles) * Config::kTokenTiles;
       i += panels * static_cast<uint32_t>(p.block_warps)) {
    dev::barrier_wait(kP24BarrierAt, 0);
    float sum[4] = {};
    add_p24_sums(sum_at(i, 0), 512, p.parts, sum);
    write_p24_sums<Config>(p, static_cast<int32_t>(block / panels), i, lane, sum);
  }
}

// The same through memory: the last block of those that share row tiles adds up what all left.
template <class Config>
TAMIS_DEVICE void meet_p24_blocks(const SpmmP24Params& p, int32_t block, uint32_t warp,
                                  uint32_t lane) {
  constexpr uint32_t kTiles = Config::kTokenTiles;
  // As many as down of Llama-3-8B has, so that all are on their way: panels, or halves of them.
  [[maybe_unused]] constexpr int kPartsAtOnce = kTiles > 4 ? 8 : 4;
  const auto sums = [&](int32_t of, uint32_t i) {  // of a part
    const int64_t row_tile = int64_t{of} * p.row_tiles + block * p.block_tiles + i / kTiles;
    return reinterpret_cast<dev::Word4*>(p.partial) + (row_tile * kTiles + i % kTiles) * 32 + lane;
  };
  const auto inside = [&](uint32_t i) {
    return block * p.block_tiles + static_cast<int32_t>(i / kTiles) < p.row_tiles;
  };
  const auto part = static_cast<int32_t>(dev::block_index_y());
  for_p24_sums<Config>(p, warp, lane, [&](uint32_t i, const float (&sum)[4]) {
    if (!inside(i)) return;
    dev::store_volatile(sums(part, i), dev::Word4{dev::bits_of(sum[0]), dev::bits_of(sum[1]),
                                                  dev::bits_of(sum[2]), dev::bits_of(sum[3])});
  });
  if (!arrives_last(p.tickets + block, static_cast<uint32_t>(p.parts), kP24FlagAt)) return;
  for (uint32_t i = warp; i < static_cast<uint32_t>(p.block_tiles) * kTiles;
       i += static_cast<uint32_t>(p.block_warps)) {
    if (!inside(i)) continue;
    float sum[4] = {};
#pragma unroll kPartsAtOnce
    for (int32_t of = 0; of < p.parts; ++of) {
      const dev::Word4 v = dev::load_volatile(sums(of, i));
      sum[0] += dev::float_of(v.x);
      sum[1] += dev::float_of(v.y);
      sum[2] += dev::float_of(v.z);
      sum[3] += dev::float_of(v.w);
    }
    write_p24_sums<Config>(p, block, i, lane, sum);
  }
}

// Makes the barrier of the sums that this block adds up. Nobody sends any before all have met,
// which ends in meet_p24_cluster and begins here, or where sums lie over x, once nobody reads that.
template <class Config>
TAMIS_DEVICE void begin_p24_cluster(const SpmmP24Params& p, int32_t panel, uint32_t thread) {
  if (thread == 0) {
    const int32_t all = p.block_tiles * Config::kTokenTiles;
    const int32_t mine = (all + p.parts - 1 - panel) / p.parts;
    dev::barrier_init(kP24BarrierAt);
    dev::fence_barrier_init();
    dev::barrier_expect(kP24BarrierAt, static_cast<uint32_t>(512 * p.parts * mine));
  }
  if (!p.sums_over_x) dev::arrive_cluster_unordered();
}

}  // namespace tamis
