// y[m,n] = sum_k x[m,k] * w[n,k] + bias[n] for up to 64 tokens.  w: t16 or m24, bf16 or f16; x,
// bias, y: the same dtype; accumulates f32 on tensor cores: t16 is loaded as sparse and computed as
// dense, m24 goes to sparse tensor cores as it is. Tile: a warp turns one record (16 rows x 64
// columns) into four m16n8k16 A fragments in registers, or takes it as two sparse m16n8k32 ones,
// and multiplies each with kTokenTiles token fragments. Warps of a block share the x columns of
// their part of k; every warp streams its own records, t16 through a ring in shared memory, m24
// through registers. Reduction: warps of a block that split k add up in shared memory; blocks that
// split k leave f32 partial sums in the workspace and the last one to arrive adds them, always from
// the first part to the last, so results repeat bit for bit. Needs: tickets zero before the first
// call; every call leaves them zero. Launched so that it may begin before the kernel before it
// ends, it needs weights which that kernel did not write. Tail: rows and columns beyond w have no
// bits; x beyond k is filled with zeros; tokens beyond m repeat the last one and are not written. A
// pruned weight times Inf or NaN is NaN here. Tried on paper: one 64-bit prefix count per 8x8 tile
// (SpInfer) is bound by POPC at 124 SM clocks per record; a word and a base shuffled per 8x16 tile
// takes 72; this order of bits takes neither. After: Xia et al. 2023 (Flash-LLM); Fan et al. 2025
// (SpInfer).
#pragma once

#include <type_traits>

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "ops/spmm/g4_decode.cuh"
#include "ops/spmm/t16_decode.cuh"
#include "ops/spmm/t16_params.h"
#include "ops/spmm/tile_sums.cuh"

namespace tamis {

template <PackedFormat kFormatOf, DType kTypeOf, int kTokenTilesOf, bool kBulkOf>
struct T16Config {
  static constexpr PackedFormat kFormat = kFormatOf;  // of the records
  static constexpr DType kType = kTypeOf;             // of w, x, bias and y
  static constexpr int kTokenTiles = kTokenTilesOf;   // of 8 tokens
  static constexpr bool kBulk = kBulkOf;  // one bulk copy per record (sm_90), or cp.async
  static constexpr int kAccumulators = 4 * kTokenTiles;  // per lane
  // m24, g4: records of a warp in registers; with 24 warps an SM, 110 KB of m24 are on their way.
  static constexpr int kDepth = kTokenTiles <= 4 ? 4 : 2;
  // Blocks of an SM that registers must leave room for; g4 for 64 tokens would not fit twice.
  static constexpr int kMinBlocks = kFormat == PackedFormat::t16   ? 2
                                    : kTokenTiles == 1             ? 3
                                    : kFormat == PackedFormat::m24 ? 2
                                    : kTokenTiles == 8             ? 1
                                                                   : 2;
};

// ---- one warp's records on their way through shared memory

template <bool kBulk>
struct RecordRing {
  const uint8_t* records;
  const uint32_t* offsets;  // of the record after the one to be requested next
  int32_t left;             // records to be requested
  uint32_t begin, end;      // the next one, in units
  uint32_t ring, stage_bytes, barriers;
  uint32_t lane;
  uint32_t stage = 0, parity = 0;  // of the record to be consumed next

  TAMIS_DEVICE RecordRing(const SpmmT16Params& p, int64_t tile, int32_t count, uint32_t warp,
                          uint32_t lane_of)
      : records(p.records),
        offsets(p.offsets + tile + 1),
        left(count),
        begin(count > 0 ? dev::load_global(p.offsets + tile) : 0),
        end(count > 0 ? dev::load_global(p.offsets + tile + 1) : 0),
        ring(kXAt + p.m * p.x_pitch_bytes + warp * kStages * p.stage_bytes),
        stage_bytes(p.stage_bytes),
        barriers(kBarriersAt + warp * kStages * 8),
        lane(lane_of) {
    if constexpr (kBulk) {
      if (lane == 0) {
        for (int s = 0; s < kStages; ++s) dev::barrier_init(barriers + 8 * s);
        dev::fence_barrier_init();
      }
      dev::sync_warp();
    }
  }

  TAMIS_DEVICE uint32_t stage_at(uint32_t s) const { return ring + s * stage_bytes; }

  // Asks for the next record. The offset after it was loaded one record ago, so nobody waits for
  // it.
  TAMIS_DEVICE void request(uint32_t s) {
    if (left > 0 && (!kBulk || lane == 0)) {
      const uint32_t bytes = (end - begin) * static_cast<uint32_t>(t16::kUnit);
      const uint8_t* from = records + int64_t{begin} * t16::kUnit;
      if constexpr (kBulk) {
        dev::barrier_expect(barriers + 8 * s, bytes);
        dev::bulk_copy(stage_at(s), from, bytes, barriers + 8 * s);
      } else {
#pragma unroll 1  // a record has about three rounds
        for (uint32_t i = 16 * lane; i < bytes; i += 16 * 32) {
          dev::copy_async16(stage_at(s) + i, from + i, 16);
        }
      }
      begin = end;
      ++offsets;
      if (--left > 0) end = dev::load_global(offsets);
    }
    if constexpr (!kBulk) dev::commit_async();
  }

  TAMIS_DEVICE void start() {
    for (uint32_t s = 0; s < kStages; ++s) request(s);
  }

  // Waits for the next record and returns where it lies.
  TAMIS_DEVICE uint32_t wait() {
    if constexpr (kBulk) {
      dev::barrier_wait(barriers + 8 * stage, parity);
    } else {
      dev::wait_async<kStages - 1>();
      dev::sync_warp();
    }
    return stage_at(stage);
  }

  // Every lane is done with that record: its stage takes another.
  TAMIS_DEVICE void release() {
    dev::sync_warp();
    request(stage);
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// ---- stages of the product

// Copies columns [64 * tile_begin, 64 * tile_end) of all tokens; zeros beyond k.
TAMIS_DEVICE void load_x(const SpmmT16Params& p, int32_t tile_begin, int32_t tile_end,
                         uint32_t thread) {
  const uint32_t chunks = static_cast<uint32_t>(tile_end - tile_begin) * 8;  // of 8 columns
  for (uint32_t i = thread; i < chunks * p.m; i += kBlockThreads) {
    const uint32_t token = i / chunks, chunk = i % chunks;
    const int32_t col = 64 * tile_begin + 8 * static_cast<int32_t>(chunk);
    const int32_t valid = p.cols - col < 0 ? 0 : p.cols - col > 8 ? 8 : p.cols - col;
    const uint16_t* from = p.x + token * p.x_stride + (valid > 0 ? col : 0);
    const uint32_t to = kXAt + token * p.x_pitch_bytes + 16 * chunk;
    if (p.x_aligned) {
      dev::copy_async16(to, from, 2 * valid);
    } else {
      for (int32_t j = 0; j < 8; ++j) {
        dev::store_shared<uint16_t>(to + 2 * j, j < valid ? dev::load_global(from + j) : 0);
      }
    }
  }
  dev::commit_async();
}

// c += x of one tile's columns * one record of t16. x_at: the lane's 16 columns of its token in
// each tile of 8 tokens.
template <class Config>
TAMIS_DEVICE void multiply_t16(uint32_t record, uint32_t lane,
                               const uint32_t (&x_at)[Config::kTokenTiles],
                               float (&c)[Config::kTokenTiles][4]) {
  const uint32_t word = dev::load_shared<uint32_t>(record + 4 * lane);
  uint32_t at[8];
  first_values(record, word, dev::load_shared<dev::Word4>(record + t16::kWordBytes), at);
  const auto load = [](uint32_t i) { return dev::load_shared<uint16_t>(i); };
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t a[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int step = 2 * half + i;
      expand_step(load, word >> (8 * step), at[2 * step], at[2 * step + 1], a[i]);
    }
#pragma unroll
    for (int t = 0; t < Config::kTokenTiles; ++t) {
      const dev::Word4 b = dev::load_shared<dev::Word4>(x_at[t] + 16 * half);
      multiply<Config::kType>(c[t], a[0], b.x, b.y);
      multiply<Config::kType>(c[t], a[1], b.z, b.w);
    }
  }
}

// Records of m24 on their way: straight to registers, as they are as long as each other and lie one
// after another, and a lane's part of one is what it multiplies.
template <int kDepthOf>
struct SparseRecords {
  static constexpr int kDepth = kDepthOf;
  const uint8_t* next;
  int32_t left;  // to be requested
  uint32_t lane;
  uint32_t places[kDepth];
  dev::Word4 first[kDepth], second[kDepth];

  TAMIS_DEVICE SparseRecords(const SpmmT16Params& p, int64_t tile, int32_t count, uint32_t lane_of)
      : next(p.records + tile * int64_t{m24::kRecordBytes}), left(count), lane(lane_of) {
#pragma unroll
    for (int slot = 0; slot < kDepth; ++slot) request(slot);
  }

  TAMIS_DEVICE void request(int slot) {
    if (left <= 0) return;  // the same in every lane
    constexpr int64_t kValues = m24::kPlaceBytes, kStep = m24::kStepBytes;
    const uint8_t* values = next + kValues + 16 * lane;
    places[slot] = dev::load_stream(reinterpret_cast<const uint32_t*>(next + 4 * lane));
    first[slot] = dev::load_stream(reinterpret_cast<const dev::Word4*>(values));
    second[slot] = dev::load_stream(reinterpret_cast<const dev::Word4*>(values + kStep));
    next += int64_t{m24::kRecordBytes};
    --left;
  }
};

// c += x of one tile's columns * the record in a slot. x_at: row lane % 8 of matrix lane / 8, four
// of which are 32 columns of 8 tokens.
template <class Config>
TAMIS_DEVICE void multiply_m24(const SparseRecords<Config::kDepth>& records, int slot,
                               const uint32_t (&x_at)[Config::kTokenTiles],
                               float (&c)[Config::kTokenTiles][4]) {
#pragma unroll
  for (int t = 0; t < Config::kTokenTiles; ++t) {
    const dev::Word4 left = dev::load_matrices(x_at[t]);
    const dev::Word4 right = dev::load_matrices(x_at[t] + 64);
    const uint32_t places = records.places[slot];
    multiply_sparse<Config::kType, 0>(c[t], records.first[slot], left, places);
    multiply_sparse<Config::kType, 1>(c[t], records.second[slot], right, places);
  }
}

// Records of g4 on their way, straight to registers too. Three loads depend on each other (where it
// is, what is kept, the kept codes), so each leads the next by some records. Through a ring in
// shared memory half as many bytes took as long on an H100: 21 and 23 us for 14336 x 4096.
template <int kDepthOf>
struct CodeRecords {
  static constexpr int kDepth = kDepthOf, kLead = kDepthOf / 2;  // of masks, of codes
  const uint8_t* records;
  const uint32_t* offsets;  // of the first record
  int32_t count;
  uint32_t lane;
  uint32_t next[kDepth], at[kDepth];
  dev::Word2 mask[kDepth];
  G4Units units[kLead];  // of the records that come next

  TAMIS_DEVICE CodeRecords(const SpmmT16Params& p, int64_t tile, int32_t count_of, uint32_t lane_of)
      : records(p.records), offsets(p.offsets + tile), count(count_of), lane(lane_of) {
#pragma unroll
    for (int slot = 0; slot < kDepth; ++slot) {
      if (slot < count) next[slot] = dev::load_global(offsets + slot);
    }
#pragma unroll
    for (int slot = 0; slot < kDepth; ++slot) request_mask(slot, slot);
#pragma unroll
    for (int slot = 0; slot < kLead; ++slot) request_units(slot, slot);
  }

  TAMIS_DEVICE const uint8_t* record(int slot) const {
    return records + int64_t{at[slot]} * t16::kUnit;
  }
  TAMIS_DEVICE void request_mask(int32_t i, int slot) {
    if (i >= count) return;  // the same in every lane
    at[slot] = next[slot];
    mask[slot] = dev::load_stream(reinterpret_cast<const dev::Word2*>(record(slot)));
    if (i + kDepth < count) next[slot] = dev::load_global(offsets + i + kDepth);
  }
  TAMIS_DEVICE void request_units(int32_t i, int slot) {
    if (i < count) units[slot % kLead].load(record(slot), mask[slot], lane);
  }
};

// c += x of one tile's columns * a record of g4; x_at as of t16.
template <class Config>
TAMIS_DEVICE void multiply_g4(const G4Units& units, const uint32_t (&x_at)[Config::kTokenTiles],
                              float (&c)[Config::kTokenTiles][4]) {
  uint32_t a[4][4];
  units.template expand<Config::kType>(a);
#pragma unroll
  for (int t = 0; t < Config::kTokenTiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const dev::Word4 b = dev::load_shared<dev::Word4>(x_at[t] + 16 * half);
      multiply<Config::kType>(c[t], a[2 * half], b.x, b.y);
      multiply<Config::kType>(c[t], a[2 * half + 1], b.z, b.w);
    }
  }
}

// Adds up the warps that share a row tile, first part of k first; the sum is the first warp's.
template <class Config>
TAMIS_DEVICE void reduce_warps(int32_t warps_k, uint32_t warp, uint32_t lane,
                               float (&c)[Config::kTokenTiles][4]) {
  constexpr uint32_t kWarpBytes = Config::kAccumulators * 32 * 4;
  const uint32_t part = warp % warps_k, first = warp / warps_k * (warps_k - 1);
  dev::sync_block();  // nobody reads x any more
  if (part > 0) {
    const uint32_t at = kXAt + (first + part - 1) * kWarpBytes + 4 * lane;
#pragma unroll
    for (int i = 0; i < Config::kAccumulators; ++i) {
      dev::store_shared<float>(at + 128 * i, c[i / 4][i % 4]);
    }
  }
  dev::sync_block();
  if (part > 0) return;
  for (int32_t other = 1; other < warps_k; ++other) {
    const uint32_t at = kXAt + (first + other - 1) * kWarpBytes + 4 * lane;
#pragma unroll
    for (int i = 0; i < Config::kAccumulators; ++i) {
      c[i / 4][i % 4] += dev::load_shared<float>(at + 128 * i);
    }
  }
}

// Grid [blocks_n, splits] of kBlockThreads.
template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kBlockThreads, Config::kMinBlocks)
    spmm_t16(const SpmmT16Params p) {
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const auto split = static_cast<int32_t>(dev::block_index_y());
  const auto part = static_cast<int32_t>(warp) % p.warps_k;
  const int32_t row_tile = static_cast<int32_t>(dev::block_index_x()) * (kBlockWarps / p.warps_k) +
                           static_cast<int32_t>(warp) / p.warps_k;
  const auto boundary = [&](int32_t index) {  // parts differ by at most one tile
    return static_cast<int32_t>(int64_t{index} * p.col_tiles / (p.splits * p.warps_k));
  };
  const int32_t block_begin = boundary(split * p.warps_k);
  const int32_t block_end = boundary((split + 1) * p.warps_k);
  const int32_t begin = boundary(split * p.warps_k + part);
  const int32_t end = boundary(split * p.warps_k + part + 1);
  const int32_t count = row_tile < p.row_tiles ? end - begin : 0;

  constexpr bool kRing = Config::kFormat == PackedFormat::t16;
  constexpr bool kSparse = Config::kFormat == PackedFormat::m24;
  uint32_t x_at[Config::kTokenTiles];
  const auto find_x = [&] {
#pragma unroll
    for (int t = 0; t < Config::kTokenTiles; ++t) {
      const int32_t token = 8 * t + static_cast<int32_t>(kSparse ? lane % 8 : lane / 4);
      x_at[t] = kXAt + (token < p.m ? token : p.m - 1) * p.x_pitch_bytes +
                128 * (begin - block_begin) + (kSparse ? 16 * (lane / 8) : 32 * (lane % 4));
    }
  };
  float c[Config::kTokenTiles][4] = {};
  // Weights do not depend on the kernel before, so their first records are on their way while it
  // ends; x, the bias, the workspace and y wait for it.
  const int64_t first = int64_t{row_tile} * p.col_tiles + begin;
  if constexpr (kRing) {
    // cp.async: x is the oldest of the groups.
    if constexpr (!Config::kBulk) load_x(p, block_begin, block_end, thread);
    RecordRing<Config::kBulk> ring(p, first, count, warp, lane);
    ring.start();
    dev::wait_for_previous();
    if constexpr (Config::kBulk) load_x(p, block_begin, block_end, thread);
    dev::wait_async<Config::kBulk ? 0 : kStages>();
    dev::sync_block();
    dev::allow_next();
    find_x();
    for (int32_t i = 0; i < count; ++i) {
      multiply_t16<Config>(ring.wait(), lane, x_at, c);
      ring.release();
#pragma unroll
      for (int t = 0; t < Config::kTokenTiles; ++t) x_at[t] += 128;
    }
  } else {
    using Records =
        std::conditional_t<kSparse, SparseRecords<Config::kDepth>, CodeRecords<Config::kDepth>>;
    Records records(p, first, count, lane);
    dev::wait_for_previous();
    load_x(p, block_begin, block_end, thread);
    dev::wait_async<0>();
    dev::sync_block();
    dev::allow_next();
    find_x();
    for (int32_t i = 0; i < count; i += Config::kDepth) {
#pragma unroll
      for (int slot = 0; slot < Config::kDepth; ++slot) {
        if (i + slot >= count) break;  // the same in every lane
        if constexpr (kSparse) {
          multiply_m24<Config>(records, slot, x_at, c);
          records.request(slot);
        } else {
          multiply_g4<Config>(records.units[slot % Records::kLead], x_at, c);
          records.request_units(i + slot + Records::kLead,
                                (slot + Records::kLead) % Config::kDepth);
          records.request_mask(i + slot + Config::kDepth, slot);
        }
#pragma unroll
        for (int t = 0; t < Config::kTokenTiles; ++t) x_at[t] += 128;
      }
    }
  }

  if (p.warps_k > 1) reduce_warps<Config>(p.warps_k, warp, lane, c);
  const bool owner = part == 0 && row_tile < p.row_tiles;
  if (p.splits > 1 && !add_blocks<Config>(p, p.splits, kFlagAt, row_tile, owner, thread, c)) return;
  if (owner) write_y<Config>(p, row_tile, lane, c);
}

}  // namespace tamis
