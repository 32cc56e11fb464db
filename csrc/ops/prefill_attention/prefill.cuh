// prefill_attention on tensor cores with f32 sums, up to 128 queries of a head a block. Tile: 64
// listed tokens; a warp takes 16 or 32 of the queries, scores them against all tokens of the tile,
// and its weights become the next product's operand in registers. Keys and values of the next tile
// are on their way while one is multiplied; listed rows are gathered by that copy. A tile is
// compared with the limits (causality, padding, spans, the list's end) only where one cuts it.
// Shared memory: chunk c of 16 bytes of a row r lies at c ^ (r & 7), so eight rows meet in no bank.
// Two row tiles a warp read keys and values half as often, which is what bounds one.
// After: Dao 2023 (FlashAttention-2); Jiang et al. 2024 (block lists).
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "ops/prefill_attention/prefill_limits.cuh"
#include "ops/prefill_attention/prefill_params.h"

namespace tamis {

template <DType kTypeOf, int kDimOf, int kRowTilesOf>
struct PrefillConfig {
  static constexpr DType kType = kTypeOf;
  static constexpr int kDim = kDimOf;
  static constexpr int kRowTiles = kRowTilesOf;  // of 16 queries, of a warp
  static constexpr int kQueries = 16 * kRowTiles * kPrefillWarps;
  static constexpr uint32_t kRow = 2 * kDim;  // bytes
  static constexpr uint32_t kChunks = kRow / 16;
  static constexpr int kSteps = kDim / 16;
  static constexpr int kKeyTiles = kPrefillKeys / 8;
  // Shared memory.
  static constexpr uint32_t kTokensAt = 0;  // of the queries; -1: none
  static constexpr uint32_t kListAt = 4 * kQueries;
  static constexpr uint32_t kLimitsAt = kListAt + 4 * kPrefillKeys * kPrefillStages;
  static constexpr uint32_t kQueriesAt = prefill_queries_at(kQueries);
  static constexpr uint32_t kKeysAt = kQueriesAt + kQueries * kRow;
  static constexpr uint32_t kStageBytes = 2 * kPrefillKeys * kRow;  // keys, then values
  static_assert(kQueriesAt % 256 == 0, "places differ in bits of an address");
  static constexpr int32_t kSharedBytes = prefill_shared(kQueries, kDim);
  static_assert(kType == DType::bf16 || kType == DType::f16, "tensor cores take 16-bit floats");
  static_assert(kDim == 64 || kDim == 128, "chunks of a row are spread by eight");

  // 16 rows on it is 16 kRow more, 2 i chunks on from the first two it differs in the bits of 32 i.
  static TAMIS_DEVICE uint32_t place(uint32_t row, uint32_t chunk) {
    return row * kRow + 16 * (chunk ^ (row & 7));
  }
};

// A block's head and what its queries may see, in shared memory: registers are short.
struct PrefillPlace {
  enum Number : uint32_t {
    kBatch,
    kHead,
    kKvHead,
    kPattern,
    kBase,      // first token that counts
    kSink,      // with kWindow
    kWindow,    // 0: none
    kLow,       // token of its first query
    kHigh,      // of its last
    kEntries,   // listed tokens
    kRowFirst,  // entries of its row of blocks
    kRowEnd,
  };
  uint32_t at;

  TAMIS_DEVICE int32_t operator[](Number i) const { return dev::load_shared<int32_t>(at + 4 * i); }
  TAMIS_DEVICE void set(Number i, int32_t value) const { dev::store_shared(at + 4 * i, value); }
  TAMIS_DEVICE int32_t token(const PrefillParams& p, int32_t entry) const {
    if (p.columns == nullptr) return entry;
    const int64_t list = int64_t{(*this)[kBatch]} * p.column_stride;
    return clamped(dev::load_global(p.columns + list + entry), 0, p.tokens - 1);
  }
};

// Tiles of listed tokens that a block reads, one after the other: entries [first, end) each.
struct TileCursor {
  int32_t block, within;  // of the row of blocks, tile of it; without blocks: 0, tile
  int32_t first, end;

  // The tile at (block, within) or the next that some query may see; false if there is none.
  TAMIS_DEVICE bool find(const PrefillParams& p, const PrefillPlace& at) {
    while (true) {
      int32_t from = 0, to = at[PrefillPlace::kEntries];
      if (p.block > 0) {
        if (at[PrefillPlace::kRowFirst] + block >= at[PrefillPlace::kRowEnd]) return false;
        const int32_t column =
            clamped(dev::load_global(p.block_columns +
                                     int64_t{at[PrefillPlace::kPattern]} * p.block_stride +
                                     at[PrefillPlace::kRowFirst] + block),
                    0, p.blocks - 1);
        from = column * p.block;
        to = from + p.block < at[PrefillPlace::kEntries] ? from + p.block
                                                         : at[PrefillPlace::kEntries];
      }
      first = from + kPrefillKeys * within;
      end = first + kPrefillKeys < to ? first + kPrefillKeys : to;
      const bool past = first >= to || (p.causal && at.token(p, first) > at[PrefillPlace::kHigh]);
      if (past) {
        if (p.block == 0) return false;
        ++block;
        within = 0;
        continue;
      }
      const int32_t oldest = at.token(p, first), newest = at.token(p, end - 1);
      const bool unseen = newest < at[PrefillPlace::kBase] ||
                          (at[PrefillPlace::kWindow] > 0 && oldest >= at[PrefillPlace::kSink] &&
                           newest <= at[PrefillPlace::kLow] - at[PrefillPlace::kWindow]);
      if (!unseen) return true;
      ++within;
    }
  }
};

template <class Config>
struct PrefillBlock {
  static constexpr int kRowTiles = Config::kRowTiles;
  const PrefillParams& p;
  PrefillPlace at{Config::kLimitsAt};
  uint32_t thread, warp, lane;

  TAMIS_DEVICE explicit PrefillBlock(const PrefillParams& params)
      : p(params),
        thread(dev::thread_index()),
        warp(dev::thread_index() / 32),
        lane(dev::thread_index() % 32) {}

  // The token of each query of the tile, and the queries; false if there is none.
  TAMIS_DEVICE bool start(int32_t tile) {
    using Place = PrefillPlace;
    constexpr int32_t kQueries = Config::kQueries;
    const auto y = static_cast<int32_t>(dev::block_index_y());
    const int32_t batch = y / p.heads, head = y % p.heads, pattern = head / p.pattern_group;
    int32_t row_first = 0, row_end = 0;
    int32_t first = kQueries * tile, slots = p.queries;  // of slots of the list of rows
    if (p.block > 0) {
      const int32_t row = p.first / p.block + tile / p.block_tiles;
      const int32_t begin = row * p.block + kQueries * (tile % p.block_tiles) - p.first;
      const int32_t limit = (row + 1) * p.block - p.first;
      slots = limit < p.queries ? limit : p.queries;
      first = begin;
      const int32_t* offsets = p.offsets + int64_t{pattern} * (p.blocks + 1) + row;
      row_first = clamped(dev::load_global(offsets), 0, p.block_stride);
      row_end = clamped(dev::load_global(offsets + 1), row_first, p.block_stride);
    } else if (p.rows != nullptr) {
      slots = p.row_count ? dev::load_global(p.row_count + batch) : p.row_stride;
      slots = clamped(slots, 0, p.row_stride);
    }
    const int32_t last = first + kQueries < slots ? first + kQueries : slots;
    const int32_t begin = first > 0 ? first : 0;
    if (begin >= last) return false;
    if (thread == 0) {
      int32_t entries = p.tokens;
      if (p.columns != nullptr) {
        entries = p.column_count ? dev::load_global(p.column_count + batch) : p.column_stride;
        entries = clamped(entries, 0, p.tokens > 0 ? p.column_stride : 0);
      }
      at.set(Place::kBatch, batch);
      at.set(Place::kHead, head);
      at.set(Place::kKvHead, head / p.group);
      at.set(Place::kPattern, pattern);
      at.set(Place::kBase, p.begin ? dev::load_global(p.begin + batch) : 0);
      at.set(Place::kSink, p.sink ? dev::load_global(p.sink + pattern) : 0);
      at.set(Place::kWindow, p.window ? dev::load_global(p.window + pattern) : 0);
      at.set(Place::kLow, p.first + query(begin, batch));
      at.set(Place::kHigh, p.first + query(last - 1, batch));
      at.set(Place::kEntries, entries);
      at.set(Place::kRowFirst, row_first);
      at.set(Place::kRowEnd, row_end);
    }
    for (auto i = static_cast<int32_t>(thread); i < kQueries; i += kPrefillThreads) {
      const bool exists = first + i >= 0 && first + i < last;
      dev::store_shared<int32_t>(Config::kTokensAt + 4 * static_cast<uint32_t>(i),
                                 exists ? p.first + query(first + i, batch) : -1);
    }
    const uint8_t* q = p.q + batch * p.q_batch + head * p.q_head;
    const uint32_t chunk = thread % Config::kChunks;
    for (uint32_t row = thread / Config::kChunks; row < kQueries;
         row += kPrefillThreads / Config::kChunks) {
      const int32_t slot = first + static_cast<int32_t>(row);
      const bool exists = slot >= 0 && slot < last;
      const int64_t i = exists ? query(slot, batch) : 0;
      dev::copy_async16(Config::kQueriesAt + Config::place(row, chunk),
                        q + i * p.q_token + 16 * chunk, exists ? 16 : 0);
    }
    dev::sync_block();
    return true;
  }
  TAMIS_DEVICE int32_t query(int32_t slot, int32_t batch) const {
    if (p.rows == nullptr) return slot;
    return clamped(dev::load_global(p.rows + int64_t{batch} * p.row_stride + slot), 0,
                   p.queries - 1);
  }

  // Copies a tile: rows past its end repeat its last one, whose score will not count.
  TAMIS_DEVICE void request(const TileCursor& tile, uint32_t stage) const {
    const uint8_t* keys =
        p.keys + at[PrefillPlace::kBatch] * p.key_batch + at[PrefillPlace::kKvHead] * p.key_head;
    const uint8_t* values = p.values + at[PrefillPlace::kBatch] * p.value_batch +
                            at[PrefillPlace::kKvHead] * p.value_head;
    const uint32_t to = Config::kKeysAt + stage * Config::kStageBytes;
    const uint32_t chunk = thread % Config::kChunks;
#pragma unroll
    for (uint32_t i = 0; i < kPrefillKeys * Config::kChunks / kPrefillThreads; ++i) {
      const uint32_t row = i * (kPrefillThreads / Config::kChunks) + thread / Config::kChunks;
      const int32_t entry = tile.first + static_cast<int32_t>(row);
      const int64_t token = at.token(p, entry < tile.end ? entry : tile.end - 1);
      const uint32_t place = Config::place(row, chunk);
      dev::copy_async16(to + place, keys + token * p.key_token + 16 * chunk, 16);
      dev::copy_async16(to + Config::kStageBytes / 2 + place,
                        values + token * p.value_token + 16 * chunk, 16);
      if (chunk == 0) {
        dev::store_shared<int32_t>(Config::kListAt + 4 * (stage * kPrefillKeys + row),
                                   entry < tile.end ? static_cast<int32_t>(token) : -1);
      }
    }
  }

  // c[m][n]: scores of queries 16 m + group (+ 8) and tokens 8 n + 2 t (+ 1).
  TAMIS_DEVICE void score(uint32_t stage, float (&c)[kRowTiles][Config::kKeyTiles][4]) const {
    const uint32_t half = lane / 16;
    const uint32_t queries = Config::place(16 * kRowTiles * warp + lane % 16, half);
    // Tokens lane % 8 (+ 8 from lane 16 on), channels 0 (+ 8 every other eight lanes).
    const uint32_t keys = Config::kKeysAt + stage * Config::kStageBytes +
                          Config::place(lane % 8 + 8 * half, lane / 8 % 2);
#pragma unroll
    for (uint32_t step = 0; step < Config::kSteps; ++step) {
      dev::Word4 a[kRowTiles];
#pragma unroll
      for (uint32_t m = 0; m < kRowTiles; ++m) {
        a[m] =
            dev::load_matrices(Config::kQueriesAt + (queries ^ 32 * step) + 16 * m * Config::kRow);
      }
#pragma unroll
      for (uint32_t pair = 0; pair < Config::kKeyTiles / 2; ++pair) {
        const dev::Word4 b = dev::load_matrices((keys ^ 32 * step) + 16 * pair * Config::kRow);
#pragma unroll
        for (uint32_t m = 0; m < kRowTiles; ++m) {
          multiply<Config::kType>(c[m][2 * pair], a[m], b.x, b.y);
          multiply<Config::kType>(c[m][2 * pair + 1], a[m], b.z, b.w);
        }
      }
    }
  }

  // Adds weights times values to c[m][n]: channels 8 n + 2 t (+ 1).
  TAMIS_DEVICE void add_values(uint32_t stage,
                               const float (&weight)[kRowTiles][Config::kKeyTiles][4],
                               float (&c)[kRowTiles][Config::kDim / 8][4]) const {
    // Tokens lane % 16, channels 0 (+ 8 from lane 16 on).
    const uint32_t values = Config::kKeysAt + stage * Config::kStageBytes +
                            Config::kStageBytes / 2 + Config::place(lane % 16, lane / 16);
#pragma unroll
    for (uint32_t step = 0; step < kPrefillKeys / 16; ++step) {
      dev::Word4 a[kRowTiles];
#pragma unroll
      for (uint32_t m = 0; m < kRowTiles; ++m) {
        const float (&low)[4] = weight[m][2 * step], (&high)[4] = weight[m][2 * step + 1];
        a[m] = {pack<Config::kType>(low[0], low[1]), pack<Config::kType>(low[2], low[3]),
                pack<Config::kType>(high[0], high[1]), pack<Config::kType>(high[2], high[3])};
      }
#pragma unroll
      for (uint32_t pair = 0; pair < Config::kDim / 16; ++pair) {
        const dev::Word4 b =
            dev::load_matrices_transposed((values ^ 32 * pair) + 16 * step * Config::kRow);
#pragma unroll
        for (uint32_t m = 0; m < kRowTiles; ++m) {
          multiply<Config::kType>(c[m][2 * pair], a[m], b.x, b.y);
          multiply<Config::kType>(c[m][2 * pair + 1], a[m], b.z, b.w);
        }
      }
    }
  }

  // Whether some limit cuts the tile of a stage.
  TAMIS_DEVICE bool cut(uint32_t stage) const {
    const uint32_t tokens = Config::kListAt + 4 * stage * kPrefillKeys;
    const auto oldest = dev::load_shared<int32_t>(tokens);
    const auto newest = dev::load_shared<int32_t>(tokens + 4 * (kPrefillKeys - 1));
    return newest < 0 || (p.causal && newest > at[PrefillPlace::kLow]) ||
           oldest < at[PrefillPlace::kBase] ||
           (at[PrefillPlace::kWindow] > 0 && newest >= at[PrefillPlace::kSink] &&
            oldest <= at[PrefillPlace::kHigh] - at[PrefillPlace::kWindow]);
  }

  // The token of query 16 m + 8 r + group of the warp; -1: no query.
  TAMIS_DEVICE int32_t position(uint32_t m, uint32_t r) const {
    return dev::load_shared<int32_t>(Config::kTokensAt +
                                     4 * (16 * (kRowTiles * warp + m) + 8 * r + lane / 4));
  }

  // Scores to weights, and what was there before scaled to the new largest score.
  TAMIS_DEVICE void soften(uint32_t stage, float (&c)[kRowTiles][Config::kKeyTiles][4],
                           float (&most)[kRowTiles][2], float (&sum)[kRowTiles][2],
                           float (&out)[kRowTiles][Config::kDim / 8][4]) const {
    constexpr float kLog2E = 1.4426950408889634f, kNever = -__builtin_inff();
    float factor = p.scale * kLog2E;
    if (p.softcap > 0) {
      factor = 1.0f;
      const float inverse = p.scale / p.softcap;
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < Config::kKeyTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float x = c[m][n][i] * inverse;
            const float e = dev::exp2(-2 * kLog2E * (x < 0 ? -x : x));
            const float tanh = dev::divide(1 - e, 1 + e);
            c[m][n][i] = kLog2E * p.softcap * (x < 0 ? -tanh : tanh);
          }
        }
      }
    }
    if (cut(stage)) {  // the same in every lane
      const int32_t base = at[PrefillPlace::kBase], sink = at[PrefillPlace::kSink];
      const int32_t window = at[PrefillPlace::kWindow];
#pragma unroll
      for (int n = 0; n < Config::kKeyTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const auto token = dev::load_shared<int32_t>(
              Config::kListAt + 4 * (stage * kPrefillKeys + 8 * n + 2 * (lane % 4) + i));
          const bool exists = token >= 0 && token >= base;
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              const int32_t own = position(m, r);
              const bool near = window == 0 || token < sink || token > own - window;
              const bool sees = exists && near && (!p.causal || token <= own);
              if (!sees) c[m][n][2 * r + i] = kNever;
            }
          }
        }
      }
    }
    // Weights are relative to `most`, which follows the largest score at some distance: what was
    // added before is scaled anew only where a score is 2^8 times beyond it.
    float largest[kRowTiles][2];
    bool beyond = false;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float x = kNever;
#pragma unroll
        for (int n = 0; n < Config::kKeyTiles; ++n) {
          x = dev::max(x, dev::max(c[m][n][2 * r], c[m][n][2 * r + 1]));
        }
        largest[m][r] = x * factor;
        beyond = beyond || largest[m][r] > most[m][r] + 8;
      }
    }
    if (dev::ballot(beyond) != 0) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float x = largest[m][r];
          x = dev::max(x, dev::shuffle_xor(x, 1));
          x = dev::max(x, dev::shuffle_xor(x, 2));
          x = dev::max(x, most[m][r]);
          const float shrink = x == kNever ? 1.0f : dev::exp2(most[m][r] - x);
          most[m][r] = x;
          sum[m][r] *= shrink;
#pragma unroll
          for (int n = 0; n < Config::kDim / 8; ++n) {
            out[m][n][2 * r] *= shrink;
            out[m][n][2 * r + 1] *= shrink;
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float from = most[m][r] == kNever ? 0.0f : most[m][r];
#pragma unroll
        for (int n = 0; n < Config::kKeyTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& x = c[m][n][2 * r + i];
            x = dev::exp2(dev::fma(x, factor, -from));
            sum[m][r] += x;
          }
        }
      }
    }
  }

  TAMIS_DEVICE void write(const float (&most)[kRowTiles][2], const float (&sum)[kRowTiles][2],
                          const float (&out)[kRowTiles][Config::kDim / 8][4]) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float all = sum[m][r];
        all += dev::shuffle_xor(all, 1);
        all += dev::shuffle_xor(all, 2);
        const int32_t token = position(m, r);
        if (token < 0) continue;
        const int32_t query = token - p.first;
        const float share = all > 0 ? dev::divide(1.0f, all) : 0.0f;
        uint8_t* to = p.out + at[PrefillPlace::kBatch] * p.out_batch +
                      at[PrefillPlace::kHead] * p.out_head + query * p.out_token;
#pragma unroll
        for (int n = 0; n < Config::kDim / 8; ++n) {
          reinterpret_cast<uint32_t*>(to)[4 * n + static_cast<int>(lane % 4)] =
              pack<Config::kType>(out[m][n][2 * r] * share, out[m][n][2 * r + 1] * share);
        }
        if (p.lse != nullptr && lane % 4 == 0) {
          constexpr float kLn2 = 0.6931471805599453f;
          p.lse[(int64_t{at[PrefillPlace::kBatch]} * p.heads + at[PrefillPlace::kHead]) *
                    p.queries +
                query] = all > 0 ? (most[m][r] + dev::log2(all)) * kLn2 : -__builtin_inff();
        }
      }
    }
  }
};

// Grid [tiles of queries, batches and heads] of kPrefillThreads; later tiles see more and begin
// first.
template <class Config>
TAMIS_DEVICE void prefill(const PrefillParams& p, int32_t tiles) {
  constexpr int kRowTiles = Config::kRowTiles;
  dev::wait_for_previous();
  dev::allow_next();
  PrefillBlock<Config> block(p);
  if (!block.start(tiles - 1 - static_cast<int32_t>(dev::block_index_x()))) return;
  TileCursor cursor{};
  bool more = block.at[PrefillPlace::kEntries] > 0 && cursor.find(p, block.at);
  if (more) block.request(cursor, 0);
  dev::commit_async();
  float out[kRowTiles][Config::kDim / 8][4] = {};
  float most[kRowTiles][2], sum[kRowTiles][2] = {};
  for (auto& each : most) each[0] = each[1] = -__builtin_inff();
  dev::wait_async<0>();
  dev::sync_block();
  uint32_t stage = 0;
  while (more) {
    ++cursor.within;
    const bool next = cursor.find(p, block.at);
    if (next) block.request(cursor, 1 - stage);  // read last before the barrier
    dev::commit_async();
    float c[kRowTiles][Config::kKeyTiles][4] = {};
    block.score(stage, c);
    block.soften(stage, c, most, sum, out);
    block.add_values(stage, c, out);
    dev::wait_async<0>();
    dev::sync_block();
    more = next;
    stage = 1 - stage;
  }
  block.write(most, sum, out);
}

}  // namespace tamis
