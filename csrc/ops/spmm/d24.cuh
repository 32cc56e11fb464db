// y[m,n] = sum_k x[m,k] * w[n,k] + bias[n] for 33 to 64 tokens, of which x of a panel fits in
// shared memory. w: d24, bf16 or f16; x, bias, y: the same dtype; accumulates f32 on sparse tensor
// cores. Tile: a warp takes the records of a row pair, 32 rows whose columns are put together,
// alone or in turns with others, kDepth of which are on their way to its registers, and multiplies
// each step with kTokenTiles token fragments, which it collects from x by column as p24's does,
// once for both row tiles. Reduction: warps of a row pair add up in shared memory; panels leave f32
// partial sums in the workspace, which the last warp to arrive adds, from the first panel to the
// last, so results repeat bit for bit. Needs: tickets zero before the first call; every call leaves
// them zero. Launched so that it may begin before the kernel before it ends, it needs weights which
// that kernel did not write. Tail: slots without a column repeat one, with weights of zero; x
// beyond k and m is zero. A pruned weight times Inf or NaN is NaN here.
#pragma once

#include "base/cuda/dev.h"
#include "ops/spmm/d24_params.h"
#include "ops/spmm/p24.cuh"

namespace tamis {

template <DType kTypeOf, int kTokenTilesOf>
struct D24Config {
  static constexpr DType kType = kTypeOf;            // of w, x, bias and y
  static constexpr int kTokenTiles = kTokenTilesOf;  // of 8 tokens
  static constexpr int kWarps = kD24Warps;
  static constexpr int kDepth = 3;               // records of a warp in registers, beside sums
  static constexpr int kAhead = 8;               // asked into the L2 cache at first
  static constexpr bool kCopiesTwo = true;       // tiles of x a lane copies at a time
  static constexpr bool kFollows = false;        // x is there before anything is multiplied
  static constexpr int kSums = 2 * kTokenTiles;  // of a warp, 16 bytes a lane each
};

// A warp's records on their way to registers: every warps-th from `at` to `end`. Of where they are
// it keeps no more than that, as registers are few.
template <class Config>
struct D24Records {
  uint32_t at, end;  // the next to be multiplied
  uint32_t lane;
  uint32_t places[Config::kDepth][2];
  uint32_t columns[Config::kDepth];
  dev::Word4 values[Config::kDepth][4];  // steps of the first tile, then of the second

  // Asks for the first ones into the L2 cache, which keeps memory busy while x is copied.
  TAMIS_DEVICE D24Records(const SpmmP24Params& p, uint32_t from, uint32_t to, uint32_t lane_of)
      : at(from), end(to), lane(lane_of) {
    const uint32_t record = at + lane * static_cast<uint32_t>(p.warps);
    if (lane < Config::kAhead && record < end) {
      dev::prefetch_range(p.records + record * d24::kRecordBytes,
                          static_cast<uint32_t>(d24::kRecordBytes));
    }
  }

  TAMIS_DEVICE void start(const SpmmP24Params& p) {
#pragma unroll
    for (int slot = 0; slot < Config::kDepth; ++slot) {
      request(p, slot, at + slot * static_cast<uint32_t>(p.warps));
    }
  }

  TAMIS_DEVICE void request(const SpmmP24Params& p, int slot, uint32_t record) {
    if (record >= end) return;  // the same in every lane
    const uint8_t* from = p.records + record * d24::kRecordBytes;
    const dev::Word2 head = dev::load_stream(reinterpret_cast<const dev::Word2*>(from + 8 * lane));
    places[slot][0] = head.x;
    columns[slot] = head.y;
    places[slot][1] = dev::load_stream(reinterpret_cast<const uint32_t*>(from + 256 + 4 * lane));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[slot][i] =
          dev::load_stream(reinterpret_cast<const dev::Word4*>(from + 384 + 512 * i + 16 * lane));
    }
  }
};

// c += x of a step's columns * the weights of both row tiles.
template <class Config, int kStep>
TAMIS_DEVICE void multiply_d24_step(const D24Records<Config>& r, int slot, uint32_t column,
                                    const P24X& x, float (&c)[2][Config::kTokenTiles][4]) {
#pragma unroll
  for (int t = 0; t < Config::kTokenTiles; ++t) {
    const dev::Word4 b =
        dev::load_matrices_transposed(x.at + column + static_cast<uint32_t>(t) * x.tile_bytes);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      if constexpr (Config::kType == DType::bf16) {
        dev::mma_sparse_bf16<kStep>(c[tile][t], r.values[slot][2 * tile + kStep], b,
                                    r.places[slot][tile]);
      } else {
        dev::mma_sparse_f16<kStep>(c[tile][t], r.values[slot][2 * tile + kStep], b,
                                   r.places[slot][tile]);
      }
    }
  }
}

template <class Config>
TAMIS_DEVICE void multiply_d24(const SpmmP24Params& p, D24Records<Config>& stream, const P24X& x,
                               float (&c)[2][Config::kTokenTiles][4]) {
  const auto warps = static_cast<uint32_t>(p.warps);
  while (stream.at < stream.end) {
#pragma unroll
    for (int slot = 0; slot < Config::kDepth; ++slot) {
      if (stream.at >= stream.end) break;  // the same in every lane
      const uint32_t columns = stream.columns[slot];
      multiply_d24_step<Config, 0>(stream, slot, columns & 0xffffu, x, c);
      multiply_d24_step<Config, 1>(stream, slot, columns >> 16, x, c);
      stream.request(p, slot, stream.at + Config::kDepth * warps);
      stream.at += warps;
    }
  }
}

TAMIS_DEVICE dev::Word4 d24_words(const float (&c)[4]) {
  return {dev::bits_of(c[0]), dev::bits_of(c[1]), dev::bits_of(c[2]), dev::bits_of(c[3])};
}
TAMIS_DEVICE void add_d24(const dev::Word4& v, float (&c)[4]) {
  c[0] += dev::float_of(v.x);
  c[1] += dev::float_of(v.y);
  c[2] += dev::float_of(v.z);
  c[3] += dev::float_of(v.w);
}

// Adds up the warps of a row pair, first part first; the sum is the first warp's.
template <class Config>
TAMIS_DEVICE void reduce_d24_warps(const SpmmP24Params& p, uint32_t warp, uint32_t lane,
                                   float (&c)[2][Config::kTokenTiles][4]) {
  constexpr uint32_t kWarpBytes = Config::kSums * 512;
  dev::sync_block();  // nobody reads x any more
  const uint32_t at = kP24XAt + warp * kWarpBytes + 16 * lane;
  const bool first = warp % p.warps == 0;
  const bool adds = warp < static_cast<uint32_t>(p.block_tiles * p.warps);
  if (adds && !first) {
#pragma unroll
    for (int i = 0; i < Config::kSums; ++i) {
      dev::store_shared<dev::Word4>(at + 512 * i,
                                    d24_words(c[i / Config::kTokenTiles][i % Config::kTokenTiles]));
    }
  }
  dev::sync_block();
  if (!adds || !first) return;
  for (int32_t other = 1; other < p.warps; ++other) {
#pragma unroll
    for (int i = 0; i < Config::kSums; ++i) {
      add_d24(dev::load_shared<dev::Word4>(at + other * kWarpBytes + 512 * i),
              c[i / Config::kTokenTiles][i % Config::kTokenTiles]);
    }
  }
}

// Leaves a panel's sums of a row pair; true in the warp that arrives last, with all of them added.
template <class Config>
TAMIS_DEVICE bool add_d24_panels(const SpmmP24Params& p, int32_t panel, int32_t row_pair,
                                 uint32_t lane, float (&c)[2][Config::kTokenTiles][4]) {
  const auto sums = [&](int32_t of) {
    return reinterpret_cast<dev::Word4*>(p.partial) +
           (int64_t{of} * p.row_tiles + row_pair) * Config::kSums * 32 + lane;
  };
  dev::Word4* mine = sums(panel);
#pragma unroll
  for (int i = 0; i < Config::kSums; ++i) {
    dev::store_volatile(mine + 32 * i,
                        d24_words(c[i / Config::kTokenTiles][i % Config::kTokenTiles]));
  }
  dev::fence_device();
  dev::sync_warp();
  int32_t last = 0;
  if (lane == 0) {
    uint32_t* ticket = p.tickets + row_pair;
    last = dev::atomic_add(ticket, 1) + 1 == static_cast<uint32_t>(p.parts) ? 1 : 0;
    if (last != 0) *ticket = 0;
    dev::fence_device();
  }
  last = dev::shuffle(last, 0);
  dev::sync_warp();
  if (last == 0) return false;
#pragma unroll
  for (int i = 0; i < Config::kSums; ++i) {
#pragma unroll
    for (float& sum : c[i / Config::kTokenTiles][i % Config::kTokenTiles]) sum = 0;
  }
#pragma unroll 1
  for (int32_t of = 0; of < p.parts; ++of) {
    const dev::Word4* theirs = sums(of);
#pragma unroll
    for (int i = 0; i < Config::kSums; ++i) {
      add_d24(dev::load_volatile(theirs + 32 * i),
              c[i / Config::kTokenTiles][i % Config::kTokenTiles]);
    }
  }
  return true;
}

// What a warp multiplies: a part of the records of a row pair; of none where it only helps to copy
// x.
struct D24Share {
  int32_t part, row_pair;

  TAMIS_DEVICE D24Share(const SpmmP24Params& p, uint32_t warp) {
    const int32_t pair = static_cast<int32_t>(warp) / p.warps;  // of the block
    part = static_cast<int32_t>(warp) % p.warps;
    row_pair = pair < p.block_tiles
                   ? static_cast<int32_t>(dev::block_index_x()) * p.block_tiles + pair
                   : p.row_tiles;
  }
};

// Grid [blocks of row pairs, panels] of 32 * block_warps threads.
template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * Config::kWarps, 1) spmm_d24(const SpmmP24Params p) {
  const uint32_t thread = dev::thread_index(), lane = thread % 32;
  const auto panel = static_cast<int32_t>(dev::block_index_y());
  uint32_t begin = 0, end = 0;
  if (const D24Share share(p, thread / 32); share.row_pair < p.row_tiles) {
    const uint32_t* offsets = p.offsets + int64_t{share.row_pair} * p.parts + panel;
    begin = dev::load_global(offsets) + static_cast<uint32_t>(share.part);
    end = dev::load_global(offsets + 1);
  }
  // Weights do not depend on the kernel before, so their first records are on their way while it
  // ends; x, the bias, the workspace and y wait for it.
  D24Records<Config> stream(p, begin, end, lane);
  dev::wait_for_previous();
  const P24X x{panel * p.panel_cols, 0, kP24XAt,
               dev::in_register(static_cast<uint32_t>(p.part_cols * p24::kColumnBytes))};
  load_p24_x<Config>(p, x, thread, static_cast<uint32_t>(32 * p.block_warps));
  stream.start(p);
  dev::sync_block();
  dev::allow_next();

  float c[2][Config::kTokenTiles][4] = {};
  multiply_d24<Config>(p, stream, x, c);
  // Computed again, or it would need registers beside the sums.
  const uint32_t warp = dev::in_register(dev::thread_index()) / 32;
  if (p.warps > 1) reduce_d24_warps<Config>(p, warp, lane, c);
  const D24Share share(p, warp);
  if (share.part > 0 || share.row_pair >= p.row_tiles) return;
  if (p.parts > 1 && !add_d24_panels<Config>(p, panel, share.row_pair, lane, c)) return;
#pragma unroll
  for (int i = 0; i < Config::kSums; ++i) {
    write_sums<Config>(p, 32 * share.row_pair + 16 * (i / Config::kTokenTiles),
                       8 * (i % Config::kTokenTiles), lane,
                       c[i / Config::kTokenTiles][i % Config::kTokenTiles]);
  }
}

}  // namespace tamis
