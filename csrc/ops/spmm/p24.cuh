// y[m,n] = sum_k x[m,k] * w[n,k] + bias[n] for 1 to 64 tokens, of which x of a panel, or of half of
// a wide one, fits in shared memory.
// w: p24, bf16 or f16; x, bias, y: the same dtype; accumulates f32 on sparse tensor cores.
// Tile: a warp takes a part of a unit's records (16 rows, columns put together), kDepth of which
// are on their way to its registers, and multiplies each step with kTokenTiles token fragments,
// which it collects from x by column: x lies in shared memory with the 8 tokens of a column side by
// side, so a row of a transposed 8 x 8 matrix may be any column. As records follow the columns, and
// warps take those of a unit in turns, only the first columns of x are waited for; some warps copy
// the others meanwhile. Reduction: every warp of a block adds up some of what its warps leave in
// shared memory; parts of k (panels, or halves of each) are a cluster and send each other that,
// halves once neither reads x any more, or leave f32 partial sums in the workspace, which the last
// one to arrive adds (p24_sums.cuh); always from the first part to the last, so results repeat bit
// for bit. Needs: tickets zero before the first call; every call leaves them zero. Launched so that
// it may begin before the kernel before it ends, it needs weights which that kernel did not write.
// Tail: slots without a column repeat one, with weights of zero; x beyond k and m is zero. A pruned
// weight times Inf or NaN is NaN here.
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "ops/spmm/p24_params.h"
#include "ops/spmm/p24_sums.cuh"

namespace tamis {

template <DType kTypeOf, int kTokenTilesOf, bool kTriplesOf>
struct P24Config {
  static constexpr DType kType = kTypeOf;            // of w, x, bias and y
  static constexpr int kTokenTiles = kTokenTilesOf;  // of 8 tokens
  static constexpr bool kTriples = kTriplesOf;       // one of three columns, or two of four
  static constexpr bool kHalves =
      takes_p24_halves(kTokenTiles);  // whether blocks may share a panel
  static constexpr int kWarps = most_p24_warps(kTokenTiles);
  // Records of a warp in registers, beside sums.
  static constexpr int kDepth = (kTriples ? 3 : 4) - (kTokenTiles == 4 || kTokenTiles > 5 ? 1 : 0);
  // Of these asked for before x, which waits behind them; the others once it is on its way. Two are
  // enough to keep memory busy but where half is kept and 9 to 16 tokens follow (an H200).
  static constexpr int kFirst = kTokenTiles == 2 && !kTriples  ? kDepth
                                : kTokenTiles == 3 && kTriples ? 1
                                                               : 2;
  // Whether lanes copy two tiles of tokens at a time, for which there are registers.
  static constexpr bool kCopiesTwo = kWarps < kMaxP24Warps;
  // Further ones asked into the L2 cache at first: of 9 to 16 tokens none, as x waits behind them.
  static constexpr int kAhead = kTokenTiles == 2 ? 0 : 2;
  static constexpr int kSteps = kTriples ? 4 : 2;  // of a record
  static constexpr int kRecordBytes =
      static_cast<int>(kTriples ? p24::kTripleBytes : p24::kPairBytes);
  static constexpr int kAccumulators = 4 * kTokenTiles;  // per lane
  // Whether warps may take records in turns: of clusters, and where columns may follow.
  static constexpr bool kTurns = dev::kBulkCopies || kTokenTiles == 2;
  // Whether columns of x may follow while records are multiplied: timed to gain with 9 to 16
  // tokens.
  static constexpr bool kFollows = dev::kBulkCopies && kTokenTiles == 2;
};

// A warp's records on their way to registers.
template <class Config>
struct P24Records {
  const uint8_t* next;
  int32_t left;    // to be requested
  uint32_t apart;  // bytes from one to the next
  uint32_t lane;
  uint32_t places[Config::kDepth];
  uint32_t columns[Config::kDepth][Config::kSteps / 2];
  dev::Word4 first[Config::kDepth], second[Config::kDepth];

  TAMIS_DEVICE P24Records(const uint8_t* from, int32_t count, uint32_t apart_of, uint32_t lane_of)
      : next(from), left(count), apart(apart_of), lane(lane_of) {
#pragma unroll
    for (int slot = 0; slot < Config::kFirst; ++slot) request(slot);
    if constexpr (Config::kAhead > 0) {
      if (left <= Config::kAhead) return;
      if (apart == Config::kRecordBytes) {
        if (lane == 0) dev::prefetch_range(next, Config::kAhead * Config::kRecordBytes);
      } else if (lane < Config::kAhead) {
        dev::prefetch_range(next + int64_t{lane} * apart, Config::kRecordBytes);
      }
    }
  }

  // Asks for the rest of what registers hold.
  TAMIS_DEVICE void request_rest() {
#pragma unroll
    for (int slot = Config::kFirst; slot < Config::kDepth; ++slot) request(slot);
  }

  TAMIS_DEVICE void request(int slot) {
    if (left <= 0) return;  // the same in every lane
    if constexpr (Config::kTriples) {
      const uint32_t column = lane / 4 * 3 + (lane % 4 == 3 ? 2 : lane % 4);
      const dev::Word2 c =
          dev::load_stream(reinterpret_cast<const dev::Word2*>(next + 128 + 8 * column));
      places[slot] = dev::load_stream(reinterpret_cast<const uint32_t*>(next + 4 * lane));
      columns[slot][0] = c.x;
      columns[slot][1] = c.y;
    } else {
      const dev::Word2 head =
          dev::load_stream(reinterpret_cast<const dev::Word2*>(next + 8 * lane));
      places[slot] = head.x;
      columns[slot][0] = head.y;
    }
    constexpr int64_t kValuesAt = Config::kRecordBytes - p24::kValueBytes;
    const uint8_t* values = next + kValuesAt + 16 * lane;
    first[slot] = dev::load_stream(reinterpret_cast<const dev::Word4*>(values));
    second[slot] = dev::load_stream(reinterpret_cast<const dev::Word4*>(values + 512));
    next += int64_t{apart};
    --left;
  }
};

// Where a column of a tile of 8 tokens lies, from the tile's first: p24::byte_of_column.
TAMIS_DEVICE uint32_t p24_column_at(uint32_t column) {
  return (column ^ (column >> 3 & 7u)) * static_cast<uint32_t>(p24::kColumnBytes);
}

// Columns 2i and 2i + 1 of a row.
TAMIS_DEVICE uint32_t p24_pair(const dev::Word2& row, uint32_t i) {
  return i == 0 ? row.x : row.y;
}
TAMIS_DEVICE uint32_t p24_pair(const dev::Word4& row, uint32_t i) {
  return i == 0 ? row.x : i == 1 ? row.y : i == 2 ? row.z : row.w;
}

// Column j of eight tokens' rows.
template <class Word>
TAMIS_DEVICE dev::Word4 p24_column(const Word (&rows)[8], uint32_t j) {
  uint32_t pairs[4];  // of tokens
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    pairs[t] = dev::byte_permute(p24_pair(rows[2 * t], j / 2), p24_pair(rows[2 * t + 1], j / 2),
                                 j % 2 == 0 ? 0x5410 : 0x7632);
  }
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

// What a block has in shared memory of a panel of x: columns from `begin` on.
struct P24X {
  int32_t first_col, begin;  // of the panel, and in the panel
  uint32_t at;               // where column 0 of the panel would lie
  uint32_t tile_bytes;       // of 8 tokens
};

// Columns that a lane copies at a time.
using P24Chunk = dev::Word2;
static_assert(sizeof(P24Chunk) == 2 * kP24ChunkCols);

// Copies as many columns of a panel as a Word holds, the 8 tokens of a column side by side; zeros
// beyond k and m.
template <class Word>
TAMIS_DEVICE void copy_p24_columns(const SpmmP24Params& p, const P24X& x, uint32_t tile,
                                   uint32_t column) {
  constexpr uint32_t kCols = sizeof(Word) / 2;
  const int32_t col = x.first_col + static_cast<int32_t>(column);
  const int32_t tokens = p.m - 8 * static_cast<int32_t>(tile);  // those of the tile, or more
  const uint16_t* from = p.x + 8 * tile * p.x_stride + col;
  const uint32_t to = x.at + tile * x.tile_bytes;
  if (!p.x_aligned || col + static_cast<int32_t>(kCols) > p.cols) {
#pragma unroll 1
    for (int32_t t = 0; t < 8; ++t, from += p.x_stride) {
#pragma unroll 1
      for (int32_t j = 0; j < static_cast<int32_t>(kCols); ++j) {
        const bool inside = t < tokens && col + j < p.cols;
        dev::store_shared<uint16_t>(to + p24_column_at(column + j) + 2 * t,
                                    inside ? dev::load_volatile(from + j) : uint16_t{0});
      }
    }
    return;
  }
  Word rows[8];
#pragma unroll
  for (int32_t t = 0; t < 8; ++t) {
    rows[t] = t < tokens ? dev::load_volatile(reinterpret_cast<const Word*>(from)) : Word{};
    from = reinterpret_cast<const uint16_t*>(
        dev::in_register(reinterpret_cast<const uint8_t*>(from + p.x_stride)));
  }
#pragma unroll
  for (uint32_t j = 0; j < kCols; ++j) {
    dev::store_shared<dev::Word4>(to + p24_column_at(column + j), p24_column(rows, j));
  }
}

// The same of two tiles of tokens, whose loads are on their way together.
template <class Config>
TAMIS_DEVICE void copy_p24_two(const SpmmP24Params& p, const P24X& x, uint32_t tile,
                               uint32_t column) {
  const int32_t col = x.first_col + static_cast<int32_t>(column);
  const bool both = tile + 1 < Config::kTokenTiles;
  if (!both || !p.x_aligned || col + kP24ChunkCols > p.cols) {
    copy_p24_columns<P24Chunk>(p, x, tile, column);
    if (both) copy_p24_columns<P24Chunk>(p, x, tile + 1, column);
    return;
  }
  const int32_t tokens = p.m - 8 * static_cast<int32_t>(tile);  // from the first tile on
  const uint16_t* from = p.x + 8 * tile * p.x_stride + col;
  dev::Word2 rows[2][8];
#pragma unroll
  for (int32_t t = 0; t < 16; ++t) {
    rows[t / 8][t % 8] =
        t < tokens ? dev::load_volatile(reinterpret_cast<const dev::Word2*>(from + t * p.x_stride))
                   : dev::Word2{0, 0};
  }
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i) {
#pragma unroll
    for (uint32_t j = 0; j < kP24ChunkCols; ++j) {
      dev::store_shared<dev::Word4>(x.at + (tile + i) * x.tile_bytes + p24_column_at(column + j),
                                    p24_column(rows[i], j));
    }
  }
}

// Copies the first columns that a block has, all threads.
template <class Config>
TAMIS_DEVICE void load_p24_x(const SpmmP24Params& p, const P24X& x, uint32_t thread,
                             uint32_t threads) {
  const int32_t cols = Config::kFollows ? p.first_cols : p.part_cols;
  const uint32_t chunks = static_cast<uint32_t>(cols) / kP24ChunkCols;
  if constexpr (Config::kCopiesTwo) {
#pragma unroll 1
    for (uint32_t i = thread; i < chunks * ((Config::kTokenTiles + 1) / 2); i += threads) {
      copy_p24_two<Config>(p, x, i / chunks * 2,
                           static_cast<uint32_t>(x.begin) + i % chunks * kP24ChunkCols);
    }
  } else {
#pragma unroll 1
    for (uint32_t i = thread; i < chunks * Config::kTokenTiles; i += threads) {
      copy_p24_columns<P24Chunk>(p, x, i / chunks,
                                 static_cast<uint32_t>(x.begin) + i % chunks * kP24ChunkCols);
    }
  }
}

// Columns that follow: those that a lane copies at a time, and a warp of two tiles of tokens, 16
// lanes each.
using P24Following = dev::Word4;
inline constexpr int32_t kP24FollowingCols = sizeof(P24Following) / 2;
inline constexpr int32_t kP24Piece = 16 * kP24FollowingCols;
static_assert(kP24StageCols % kP24Piece == 0, "whole pieces");

// Makes the barriers of the stages that follow the first columns.
TAMIS_DEVICE void expect_p24_x(const SpmmP24Params& p) {
  uint32_t at = kP24StagesAt;
  for (int32_t left = p.part_cols - p.first_cols; left > 0; left -= kP24StageCols, at += 8) {
    const int32_t cols = left < kP24StageCols ? left : kP24StageCols;
    dev::barrier_init(at, static_cast<uint32_t>(32 * ((cols + kP24Piece - 1) / kP24Piece)));
  }
  dev::fence_barrier_init();
}

// Copies the columns after the first ones, by `warps` warps.
template <class Config>
TAMIS_DEVICE void follow_p24_x(const SpmmP24Params& p, const P24X& x, int32_t warp, int32_t warps,
                               uint32_t lane) {
  constexpr int32_t kPiece = kP24Piece;
#pragma unroll 1
  for (int32_t from = kPiece * warp; from < p.part_cols - p.first_cols; from += kPiece * warps) {
    const uint32_t column =
        static_cast<uint32_t>(p.first_cols + from) + lane % 16 * kP24FollowingCols;
    if (column < static_cast<uint32_t>(p.part_cols)) {
      copy_p24_columns<P24Following>(p, x, lane / 16, column);
    }
    dev::barrier_arrive(kP24StagesAt + 8 * static_cast<uint32_t>(from / kP24StageCols));
  }
}

// How far x is known to be there.
struct P24Arrived {
  int32_t chunks;
  uint32_t stage = kP24StagesAt;

  // Waits for what a record reads, by its first step's columns.
  TAMIS_DEVICE void wait_for(uint32_t columns) {
    const uint32_t bits = dev::ballot((columns & 1) != 0);
    const auto last = static_cast<int32_t>((bits & 7) | (bits >> 1 & 0x38));  // p24::chunk_lane
    while (last >= chunks) {
      dev::barrier_wait(stage, 0);
      stage += 8;
      chunks += kP24StageCols / static_cast<int32_t>(p24::kChunkCols);
    }
  }
};

// c += x of a step's columns * its weights.
template <class Config, int kSelector>
TAMIS_DEVICE void multiply_p24_step(const dev::Word4& a, uint32_t places, uint32_t column,
                                    const P24X& x, float (&c)[Config::kTokenTiles][4]) {
  const uint32_t at = x.at + column;
#pragma unroll
  for (int t = 0; t < Config::kTokenTiles; ++t) {
    const dev::Word4 b =
        dev::load_matrices_transposed(at + static_cast<uint32_t>(t) * x.tile_bytes);
    if constexpr (Config::kType == DType::bf16) {
      dev::mma_sparse_bf16<kSelector>(c[t], a, b, places);
    } else {
      dev::mma_sparse_f16<kSelector>(c[t], a, b, places);
    }
  }
}

// Two steps whose weights are 16 bytes of a lane, one of three: each goes beside a zero.
template <class Config, int kSelector>
TAMIS_DEVICE void multiply_triples(const dev::Word4& v, uint32_t places, uint32_t columns,
                                   const P24X& x, float (&c)[Config::kTokenTiles][4]) {
  constexpr uint32_t kFirst = 0x33333333u, kSecond = 0xccccccccu;
  multiply_p24_step<Config, kSelector>({v.x & 0xffffu, v.x >> 16, v.y & 0xffffu, v.y >> 16},
                                       (places & kFirst) | kSecond, columns & 0xfff0u, x, c);
  multiply_p24_step<Config, kSelector>({v.z & 0xffffu, v.z >> 16, v.w & 0xffffu, v.w >> 16},
                                       (places >> 2 & kFirst) | kSecond, columns >> 16, x, c);
}

template <class Config>
TAMIS_DEVICE void multiply_p24(const P24Records<Config>& r, int slot, const P24X& x,
                               float (&c)[Config::kTokenTiles][4]) {
  const uint32_t columns = r.columns[slot][0];
  if constexpr (Config::kTriples) {
    multiply_triples<Config, 0>(r.first[slot], r.places[slot], columns, x, c);
    multiply_triples<Config, 1>(r.second[slot], r.places[slot], r.columns[slot][1], x, c);
  } else {
    // The lowest bits of the first step's columns say where they lie among all.
    multiply_p24_step<Config, 0>(r.first[slot], r.places[slot], columns & 0xfff0u, x, c);
    multiply_p24_step<Config, 1>(r.second[slot], r.places[slot], columns >> 16, x, c);
  }
}

// Multiplies a warp's records; wait: for what one reads, by its first step's columns.
template <class Config, class Wait>
TAMIS_DEVICE void multiply_records(P24Records<Config>& stream, int32_t count, const P24X& x,
                                   const Wait& wait, float (&c)[Config::kTokenTiles][4]) {
  for (int32_t i = 0; i < count; i += Config::kDepth) {
#pragma unroll
    for (int slot = 0; slot < Config::kDepth; ++slot) {
      if (i + slot >= count) break;  // the same in every lane
      wait(stream.columns[slot][0]);
      multiply_p24<Config>(stream, slot, x, c);
      stream.request(slot);
    }
  }
}

// Grid [blocks of row tiles, parts of k] of 32 * block_warps threads, or [blocks * parts],
// the parts of row tiles a cluster.
template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * Config::kWarps, 1) spmm_p24(const SpmmP24Params p) {
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const auto block = static_cast<int32_t>(dev::block_index_x());
  const bool cluster = dev::kBulkCopies && p.cluster;
  const int32_t k_part = cluster ? block % p.parts : static_cast<int32_t>(dev::block_index_y());
  const auto tile = static_cast<int32_t>(warp) / p.warps;  // of the block
  const int32_t row_tile = tile < p.block_tiles
                               ? (cluster ? block / p.parts : block) * p.block_tiles + tile
                               : p.row_tiles;  // none: the warp helps to copy x
  const auto part = static_cast<int32_t>(warp) % p.warps;
  if (cluster) begin_p24_cluster<Config>(p, k_part, thread);
  // Columns after the first ones come while records are multiplied.
  const bool follows = Config::kFollows && p.first_cols < p.part_cols;
  if constexpr (Config::kFollows) {
    if (follows && thread == 0) expect_p24_x(p);
  }
  const bool turns = Config::kTurns && p.turns;
  uint32_t begin = 0;
  int32_t count = 0;
  if (row_tile < p.row_tiles) {
    const uint32_t* offsets = p.offsets + (int64_t{row_tile} * p.parts + k_part) * p.part_halves;
    const uint32_t unit = dev::load_global(offsets);
    const auto records = static_cast<int32_t>(dev::load_global(offsets + p.part_halves) - unit);
    // In turns, all warps are at about the same columns.
    const int32_t first = turns ? part : records * part / p.warps;
    begin = unit + static_cast<uint32_t>(first);
    count =
        turns ? (records - part + p.warps - 1) / p.warps : records * (part + 1) / p.warps - first;
  }
  // Weights do not depend on the kernel before, so their first records are on their way while it
  // ends; x, the bias, the workspace and y wait for it.
  const uint32_t apart = Config::kRecordBytes * static_cast<uint32_t>(turns ? p.warps : 1);
  P24Records<Config> stream(p.records + int64_t{begin} * Config::kRecordBytes, count, apart, lane);
  // Where two blocks find room on an SM, this one waits for longer, and nothing waits behind it.
  const bool two = cluster && !p.sums_over_x;
  if (two) stream.request_rest();
  dev::wait_for_previous();
  const bool halves = Config::kHalves && p.shares == 2;
  const int32_t columns = halves && k_part % 2 > 0 ? p.half_begin : 0;  // of the panel, not here
  const P24X x{(halves ? k_part / 2 : k_part) * p.panel_cols, columns,
               static_cast<uint32_t>(kP24XAt - columns * static_cast<int32_t>(p24::kColumnBytes)),
               dev::in_register(static_cast<uint32_t>(p.part_cols * p24::kColumnBytes))};
  load_p24_x<Config>(p, x, thread, static_cast<uint32_t>(32 * p.block_warps));
  if (!two) stream.request_rest();
  dev::sync_block();
  dev::allow_next();

  float c[Config::kTokenTiles][4] = {};
  const uint32_t multiplying = static_cast<uint32_t>(p.block_tiles * p.warps);
  if (warp < multiplying && !follows) {
    multiply_records<Config>(stream, count, x, [](uint32_t) {}, c);
  }
  if constexpr (Config::kFollows) {
    if (warp < multiplying && follows) {
      P24Arrived arrived{p.first_cols / static_cast<int32_t>(p24::kChunkCols)};
      const auto wait = [&arrived](uint32_t columns) { arrived.wait_for(columns); };
      multiply_records<Config>(stream, count, x, wait, c);
    } else if (follows) {
      follow_p24_x<Config>(p, x, static_cast<int32_t>(warp - multiplying),
                           p.block_warps - static_cast<int32_t>(multiplying), lane);
    }
  }

  if (cluster && p.sums_over_x) dev::arrive_cluster_unordered();
  leave_p24_sums<Config>(p, warp, lane, c);
  if (cluster) {
    meet_p24_cluster<Config>(p, warp, lane);
  } else if (p.parts > 1) {
    meet_p24_blocks<Config>(p, block, warp, lane);
  } else {
    for_p24_sums<Config>(p, warp, lane, [&](uint32_t i, const float (&sum)[4]) {
      write_p24_sums<Config>(p, block, i, lane, sum);
    });
  }
}

}  // namespace tamis
