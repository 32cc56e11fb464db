// kv_mass on tensor cores, in two passes that score twice instead of keeping scores: the logarithm
// of each row's sum over its tokens, then each token's sum over all rows of its KV head. Both keep
// one operand of a block in shared memory and let tiles of 64 rows of the other pass by: the first
// keeps rows of q, the second keys, so that a token's sum is one thread's and its order is fixed.
// The query heads of a KV head are rows of one matrix, so keys are read once for all of them.
// A tile is compared with what queries see only where a limit cuts it.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_select/mass_params.h"
#include "ops/kv_select/row_tiles.cuh"

namespace tamis {

template <DType kTypeOf, int kRowTilesOf>
struct MassConfig : TileConfig<kTypeOf, kRowTilesOf> {
  using TileConfig<kTypeOf, kRowTilesOf>::kKept;
  // Shared memory.
  static constexpr uint32_t kSeenAt = 0;              // last token of each kept query
  static constexpr uint32_t kStreamedAt = 4 * kKept;  // the same of streamed ones, and their lse
  static constexpr uint32_t kRowsAt = mass_rows_at(kKept);
};

template <class Config>
struct MassBlock : RowTiles<Config> {
  using RowTiles<Config>::kRowTiles;
  const MassParams& p;
  int32_t head, first;  // token that counts

  TAMIS_DEVICE explicit MassBlock(const MassParams& params)
      : RowTiles<Config>(params.dim, params.row_bytes),
        p(params),
        head(static_cast<int32_t>(dev::block_index_y())) {
    first = p.begin ? dev::load_volatile(p.begin + head) : 0;
    first = first < 0 ? 0 : first < p.tokens ? first : p.tokens;
  }

  // The last token that query i sees.
  TAMIS_DEVICE int32_t position(int32_t i) const {
    if (p.positions == nullptr) return p.tokens - p.queries + i;
    const int32_t found = dev::load_global(p.positions + i);
    return found < 0 ? 0 : found < p.tokens ? found : p.tokens - 1;
  }
  // Of `count` rows of q the first of which is query `i`: queries of one head or of neighbouring
  // ones.
  TAMIS_DEVICE int32_t latest(int32_t i, int32_t count) const {
    return position(i + count <= p.queries ? i + count - 1 : p.queries - 1);
  }
  TAMIS_DEVICE int32_t earliest(int32_t i, int32_t count) const {
    return position(i + count <= p.queries ? i : 0);
  }

  // Rows [from, from + count) of q or of keys to shared memory; those from `end` on become zeros.
  template <bool kQueries>
  TAMIS_DEVICE void load(int32_t from, int32_t end, int32_t count, uint32_t to) const {
    const uint8_t* source =
        p.keys + head / p.kv_heads * p.key_batch + head % p.kv_heads * p.key_head;
    int64_t step = p.key_token;
    DType type = p.key_dtype;
    if constexpr (kQueries) {
      type = p.q_dtype;
      step = int64_t{p.dim} * (type == DType::f32 ? 4 : 2);
      source = p.q + int64_t{head} * p.rows * step;
    }
    RowTiles<Config>::load(type, source, step, count, to,
                           [&](int32_t row) { return from + row < end ? from + row : -1; });
  }

  TAMIS_DEVICE uint32_t stage_at(uint32_t stage) const {
    return Config::kRowsAt +
           (Config::kKept + stage * kTileStream) * static_cast<uint32_t>(p.row_bytes);
  }

  TAMIS_DEVICE void score(uint32_t stage, int32_t streamed,
                          float (&c)[kRowTiles][Config::kTiles][4]) const {
    RowTiles<Config>::score(Config::kRowsAt, stage_at(stage), streamed, c);
  }
};

// ---- first pass: what rows come to

template <class Config>
struct MassRows {
  static constexpr int kRowTiles = Config::kRowTiles;
  const MassBlock<Config>& b;
  float most[kRowTiles][2], sum[kRowTiles][2];

  TAMIS_DEVICE explicit MassRows(const MassBlock<Config>& block) : b(block) {
    for (int m = 0; m < kRowTiles; ++m) {
      for (int r = 0; r < 2; ++r) {
        most[m][r] = -__builtin_inff();
        sum[m][r] = 0;
      }
    }
  }
  // Tokens from `token` on.
  TAMIS_DEVICE void add(int32_t token, bool cut, float (&c)[kRowTiles][Config::kTiles][4]) {
    constexpr float kNever = -__builtin_inff();
    const float factor = b.p.factor;
#pragma unroll
    for (uint32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (uint32_t r = 0; r < 2; ++r) {
        if (cut) {
          const uint32_t row = 16 * (kRowTiles * b.warp + m) + 8 * r + b.lane / 4;
          const auto last = dev::load_shared<int32_t>(Config::kSeenAt + 4 * row);
#pragma unroll
          for (int n = 0; n < Config::kTiles; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int32_t t = token + 8 * n + 2 * static_cast<int32_t>(b.lane % 4) + i;
              if (t > last || t < b.first) c[m][n][2 * r + i] = kNever;
            }
          }
        }
        float largest = kNever;
#pragma unroll
        for (int n = 0; n < Config::kTiles; ++n) {
          largest = dev::max(largest, dev::max(c[m][n][2 * r], c[m][n][2 * r + 1]));
        }
        largest = dev::max(largest, dev::shuffle_xor(largest, 1));
        largest = dev::max(largest, dev::shuffle_xor(largest, 2));
        largest = dev::max(most[m][r], largest * factor);
        const float from = largest == kNever ? 0.0f : largest;
        float added = 0;
#pragma unroll
        for (int n = 0; n < Config::kTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            added += dev::exp2(dev::fma(c[m][n][2 * r + i], factor, -from));
          }
        }
        sum[m][r] = dev::fma(sum[m][r], dev::exp2(most[m][r] - from), added);
        most[m][r] = largest;
      }
    }
  }
  TAMIS_DEVICE void write(int32_t from, int32_t end, int32_t split) const {
#pragma unroll
    for (uint32_t m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (uint32_t r = 0; r < 2; ++r) {
        float all = sum[m][r];
        all += dev::shuffle_xor(all, 1);
        all += dev::shuffle_xor(all, 2);
        const int32_t row =
            from + static_cast<int32_t>(16 * (kRowTiles * b.warp + m) + 8 * r + b.lane / 4);
        if (b.lane % 4 != 0 || row >= end) continue;
        const int64_t at = int64_t{b.head} * b.p.rows + row;
        if (b.p.splits == 1) {
          b.p.lse[at] = all > 0 ? most[m][r] + dev::log2(all) : __builtin_inff();
        } else {
          float* part = b.p.parts + 2 * (int64_t{split} * b.p.heads * b.p.rows + at);
          part[0] = most[m][r];
          part[1] = all;
        }
      }
    }
  }
};

// Grid [tiles of rows times splits, heads] of kTileThreads; later tiles see more and begin first.
template <class Config>
TAMIS_DEVICE void mass_rows(const MassParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const MassBlock<Config> b(p);
  const auto x = static_cast<int32_t>(dev::block_index_x());
  const int32_t tiles = (p.rows + Config::kKept - 1) / Config::kKept;
  const int32_t from = (tiles - 1 - x / p.splits) * Config::kKept, split = x % p.splits;
  const int32_t end = from + Config::kKept < p.rows ? from + Config::kKept : p.rows;
  const int32_t query = from % p.queries;
  const int32_t seen = b.latest(query, end - from) + 1, all_seen = b.earliest(query, end - from);
  int32_t tile = split * p.split_tiles, tiles_end = tile + p.split_tiles;
  tile = tile > b.first / kTileStream ? tile : b.first / kTileStream;
  const int32_t needed = (seen + kTileStream - 1) / kTileStream;
  tiles_end = tiles_end < needed ? tiles_end : needed;
  MassRows<Config> rows(b);
  if (tile < tiles_end) {
    for (auto i = static_cast<int32_t>(b.thread); i < Config::kKept; i += kTileThreads) {
      const int32_t row = from + i < end ? from + i : from;
      dev::store_shared<int32_t>(Config::kSeenAt + 4 * static_cast<uint32_t>(i),
                                 b.position(row % p.queries));
    }
    b.template load<true>(from, end, Config::kKept, Config::kRowsAt);
    b.template load<false>(kTileStream * tile, p.tokens, kTileStream, b.stage_at(0));
  }
  dev::commit_async();
  dev::wait_async<0>();
  dev::sync_block();
  const bool busy = from + static_cast<int32_t>(16 * Config::kRowTiles * b.warp) < end;
  for (uint32_t stage = 0; tile < tiles_end; ++tile, stage = 1 - stage) {
    if (tile + 1 < tiles_end) {
      b.template load<false>(kTileStream * (tile + 1), p.tokens, kTileStream,
                             b.stage_at(1 - stage));
    }
    dev::commit_async();
    if (busy) {
      const int32_t token = kTileStream * tile;
      float c[Config::kRowTiles][Config::kTiles][4] = {};
      b.score(stage, kTileStream, c);
      rows.add(token, token + kTileStream - 1 > all_seen || token < b.first, c);
    }
    dev::wait_async<0>();
    dev::sync_block();
  }
  rows.write(from, end, split);
}

// Grid [rows of all heads / kMassMergeThreads] of those: splits of a row, in their order.
TAMIS_DEVICE void mass_merge(const MassParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const int64_t all = int64_t{p.heads} * p.rows;
  const int64_t row = int64_t{dev::block_index_x()} * kMassMergeThreads + dev::thread_index();
  if (row >= all) return;
  float most = -__builtin_inff(), sum = 0;
  for (int32_t s = 0; s < p.splits; ++s) {
    most = dev::max(most, dev::load_volatile(p.parts + 2 * (s * all + row)));
  }
  for (int32_t s = 0; s < p.splits; ++s) {
    const float* part = p.parts + 2 * (s * all + row);
    const float mine = dev::load_volatile(part + 1);
    if (mine > 0) sum += mine * dev::exp2(dev::load_volatile(part) - most);
  }
  p.lse[row] = sum > 0 ? most + dev::log2(sum) : __builtin_inff();
}

// ---- second pass: what tokens get

// A tile of rows of q.
struct MassTile {
  int32_t tile, query, count;  // the query of its first row, its rows

  // The first one from `tile` on that sees a token from `token` on; tile == tiles if there is none.
  template <class Config>
  TAMIS_DEVICE static MassTile find(const MassBlock<Config>& b, int32_t tile, int32_t token) {
    const MassParams& p = b.p;
    const int32_t tiles = (p.rows + kTileStream - 1) / kTileStream;
    while (tile < tiles) {
      const int32_t from = tile * kTileStream, left = p.rows - from;
      const MassTile found{tile, from % p.queries, left < kTileStream ? left : kTileStream};
      if (b.latest(found.query, found.count) >= token) return found;
      if (b.position(p.queries - 1) < token) break;  // no row does
      ++tile;
      if (p.positions == nullptr) {  // rows of one head, the last of which come later
        const int32_t row = from - found.query + token - (p.tokens - p.queries);
        tile = tile > row / kTileStream ? tile : row / kTileStream;
      }
    }
    return {tiles, 0, 0};
  }
};

// Grid [tiles of tokens, heads] of kTileThreads; adds to out.
template <class Config>
TAMIS_DEVICE void mass_columns(const MassParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const MassBlock<Config> b(p);
  const auto from = static_cast<int32_t>(dev::block_index_x()) * Config::kKept;
  const int32_t end = from + Config::kKept < p.tokens ? from + Config::kKept : p.tokens;
  const int32_t tiles = (p.rows + kTileStream - 1) / kTileStream;
  if (b.first >= end) return;
  MassTile tile = MassTile::find(b, 0, from);
  if (tile.tile == tiles) return;
  const auto request = [&](int32_t next, uint32_t stage) {
    b.template load<true>(kTileStream * next, p.rows, kTileStream, b.stage_at(stage));
    if (b.thread < kTileStream) {
      const int32_t row = kTileStream * next + static_cast<int32_t>(b.thread);
      const uint32_t at = Config::kStreamedAt + 8 * (stage * kTileStream + b.thread);
      const bool there = row < p.rows;
      dev::store_shared<int32_t>(at, there ? b.position(row % p.queries) : -1);
      dev::store_shared<float>(
          at + 4,
          there ? dev::load_volatile(p.lse + int64_t{b.head} * p.rows + row) : __builtin_inff());
    }
  };
  b.template load<false>(from, end, Config::kKept, Config::kRowsAt);
  request(tile.tile, 0);
  dev::commit_async();
  dev::wait_async<0>();
  dev::sync_block();
  constexpr int kRowTiles = Config::kRowTiles;
  float sum[kRowTiles][2] = {};
  const bool busy = from + static_cast<int32_t>(16 * kRowTiles * b.warp) < end;
  const int32_t mine = from + static_cast<int32_t>(16 * kRowTiles * b.warp + b.lane / 4);
  uint32_t stage = 0;
  while (tile.tile < tiles) {
    const MassTile next = MassTile::find(b, tile.tile + 1, from);
    if (next.tile < tiles) request(next.tile, 1 - stage);
    dev::commit_async();
    if (busy) {
      float c[kRowTiles][Config::kTiles][4] = {};
      b.score(stage, tile.count, c);
      const bool cut = b.earliest(tile.query, tile.count) < end - 1;
#pragma unroll
      for (uint32_t n = 0; n < Config::kTiles; ++n) {
        if (8 * static_cast<int32_t>(n) >= tile.count) break;  // the same in every thread
        const auto seen = dev::load_shared<dev::Word4>(
            Config::kStreamedAt + 8 * (stage * kTileStream + 8 * n + 2 * (b.lane % 4)));
        const int32_t until[2] = {static_cast<int32_t>(seen.x), static_cast<int32_t>(seen.z)};
        const float lse[2] = {dev::float_of(seen.y), dev::float_of(seen.w)};
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int32_t token = mine + 16 * m + 8 * r;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const float x = dev::exp2(dev::fma(c[m][n][2 * r + i], p.factor, -lse[i]));
              sum[m][r] += !cut || token <= until[i] ? x : 0.0f;
            }
          }
        }
      }
    }
    dev::wait_async<0>();
    dev::sync_block();
    tile = next;
    stage = 1 - stage;
  }
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float all = sum[m][r];
      all += dev::shuffle_xor(all, 1);
      all += dev::shuffle_xor(all, 2);
      const int32_t token = mine + 16 * m + 8 * r;
      if (b.lane % 4 != 0 || token >= end || token < b.first) continue;
      float* to = p.out + int64_t{b.head} * p.tokens + token;
      *to = dev::load_volatile(to) + all * p.share;
    }
  }
}

}  // namespace tamis
