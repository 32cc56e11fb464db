// kv_rebuild: key[t] = turn(coordinates[t] . basis) of 64 listed tokens and one KV head a block, on
// tensor cores with f32 sums, 64 columns of the rank at a time; then turned in f32 by the sum of
// two tabled angles and rounded once. Shared memory: chunk c of 16 bytes of a row r lies at c ^ (r
// & 7), so eight rows meet in no bank.   Needs: a rank that is a multiple of 8, pairs of 4.
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "ops/kv_rebuild/rebuild_params.h"

namespace tamis {

template <DType kTypeOf, int kDimOf>
struct RebuildConfig {
  static constexpr DType kType = kTypeOf;
  static constexpr int kDim = kDimOf;
  static constexpr int kTiles = kDim / 8;                                   // of channels
  static constexpr uint32_t kRow = 2 * kRebuildStep, kBasisRow = 2 * kDim;  // bytes
  static constexpr uint32_t kBasisAt = kRebuildTokens * kRow;               // of a stage
  static constexpr uint32_t kStage = kBasisAt + kRebuildStep * kBasisRow;
  static constexpr uint32_t kPitch = 4 * (kDim + 4);  // of products
  static constexpr int32_t kSharedBytes = rebuild_shared(kDim);
  static_assert(kDim % 64 == 0, "eight chunks of a row are swizzled");
};

template <class Config>
struct Rebuild {
  const RebuildParams& p;
  int32_t head, batch, kv_head, first;  // first entry
  uint32_t thread, warp, lane;

  TAMIS_DEVICE explicit Rebuild(const RebuildParams& params)
      : p(params),
        head(static_cast<int32_t>(dev::block_index_y())),
        batch(head / params.kv_heads),
        kv_head(head % params.kv_heads),
        first(static_cast<int32_t>(dev::block_index_x()) * kRebuildTokens),
        thread(dev::thread_index()),
        warp(dev::thread_index() / 32),
        lane(dev::thread_index() % 32) {}

  // Which token the block's entry is; past the last: the last one.
  TAMIS_DEVICE int32_t token(uint32_t row) const {
    int32_t entry = first + static_cast<int32_t>(row);
    entry = entry < p.listed ? entry : p.listed - 1;
    const int32_t id = dev::load_volatile(p.index + int64_t{head} * p.listed + entry);
    return id < 0 ? 0 : id < p.tokens ? id : p.tokens - 1;
  }
  static TAMIS_DEVICE uint32_t place(uint32_t row, uint32_t chunk, uint32_t bytes) {
    return row * bytes + 16 * (chunk ^ (row & 7));
  }

  // Columns [from, from + kRebuildStep) of the rank.
  TAMIS_DEVICE void request(int32_t from, uint32_t stage) const {
    const uint32_t to = stage * Config::kStage;
    const uint8_t* coordinates = p.coordinates + batch * p.coordinate_batch;
    const uint8_t* basis = p.basis + int64_t{head} * p.rank * Config::kBasisRow;
    constexpr uint32_t kPieces = Config::kRow / 16, kBasisPieces = Config::kBasisRow / 16;
#pragma unroll
    for (uint32_t i = 0; i < kRebuildTokens * kPieces / kRebuildThreads; ++i) {
      const uint32_t piece = kRebuildThreads * i + thread, row = piece / kPieces;
      const int32_t column = from + 8 * static_cast<int32_t>(piece % kPieces);
      const bool there = column < p.rank;
      dev::copy_async16(to + place(row, piece % kPieces, Config::kRow),
                        coordinates + token(row) * p.coordinate_token + (there ? 2 * column : 0),
                        there ? 16 : 0);
    }
#pragma unroll
    for (uint32_t i = 0; i < kRebuildStep * kBasisPieces / kRebuildThreads; ++i) {
      const uint32_t piece = kRebuildThreads * i + thread, row = piece / kBasisPieces;
      const int32_t column = from + static_cast<int32_t>(row);
      const bool there = column < p.rank;
      dev::copy_async16(
          to + Config::kBasisAt + place(row, piece % kBasisPieces, Config::kBasisRow),
          basis + (there ? column : 0) * int64_t{Config::kBasisRow} + 16 * (piece % kBasisPieces),
          there ? 16 : 0);
    }
  }

  TAMIS_DEVICE void multiply(uint32_t stage, float (&c)[Config::kTiles][4]) const {
    const uint32_t at = stage * Config::kStage;
#pragma unroll
    for (uint32_t step = 0; step < kRebuildStep / 16; ++step) {
      const dev::Word4 a =
          dev::load_matrices(at + place(16 * warp + lane % 16, 2 * step + lane / 16, Config::kRow));
#pragma unroll
      for (uint32_t pair = 0; pair < Config::kTiles / 2; ++pair) {
        const dev::Word4 b = dev::load_matrices_transposed(
            at + Config::kBasisAt +
            place(16 * step + lane % 16, 2 * pair + lane / 16, Config::kBasisRow));
        tamis::multiply<Config::kType>(c[2 * pair], a, b.x, b.y);
        tamis::multiply<Config::kType>(c[2 * pair + 1], a, b.z, b.w);
      }
    }
  }

  // Four products of a row.
  static TAMIS_DEVICE void load(uint32_t row, int32_t channel, float (&x)[4]) {
    const auto v =
        dev::load_shared<dev::Word4>(row * Config::kPitch + 4 * static_cast<uint32_t>(channel));
    x[0] = dev::float_of(v.x);
    x[1] = dev::float_of(v.y);
    x[2] = dev::float_of(v.z);
    x[3] = dev::float_of(v.w);
  }
  TAMIS_DEVICE void store(uint32_t row, int32_t channel, const float (&x)[4]) const {
    const int64_t at = int64_t{head} * p.listed + first + static_cast<int32_t>(row);
    *reinterpret_cast<dev::Word2*>(p.out_keys + 2 * (at * Config::kDim + channel)) = {
        pack<Config::kType>(x[0], x[1]), pack<Config::kType>(x[2], x[3])};
  }
  TAMIS_DEVICE void table(int32_t row, int32_t pair, float (&x)[4]) const {
    const dev::Word4 v = dev::load_global(
        reinterpret_cast<const dev::Word4*>(p.turns + int64_t{row} * p.pairs + pair));
    x[0] = dev::float_of(v.x);
    x[1] = dev::float_of(v.y);
    x[2] = dev::float_of(v.z);
    x[3] = dev::float_of(v.w);
  }
  // Channels `pair` to pair + 3 and their partners of a row, or four that do not turn.
  TAMIS_DEVICE void turn(uint32_t row, int32_t pair) const {
    float x[4];
    if (pair >= p.pairs) {
      load(row, pair + p.pairs, x);
      store(row, pair + p.pairs, x);
      return;
    }
    const int32_t t = token(row);
    const int32_t fine = 2 * (t % static_cast<int32_t>(kTurnFine));
    const int32_t coarse = 2 * static_cast<int32_t>(kTurnFine + t / kTurnFine);
    float y[4], fine_cos[4], fine_sin[4], coarse_cos[4], coarse_sin[4];
    table(fine, pair, fine_cos);
    table(fine + 1, pair, fine_sin);
    table(coarse, pair, coarse_cos);
    table(coarse + 1, pair, coarse_sin);
    load(row, pair, x);
    load(row, pair + p.pairs, y);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float cos = fine_cos[i] * coarse_cos[i] - fine_sin[i] * coarse_sin[i];
      const float sin = fine_sin[i] * coarse_cos[i] + fine_cos[i] * coarse_sin[i];
      const float first_of = x[i] * cos - y[i] * sin;
      y[i] = y[i] * cos + x[i] * sin;
      x[i] = first_of;
    }
    store(row, pair, x);
    store(row, pair + p.pairs, y);
  }

  TAMIS_DEVICE void copy_values(uint32_t rows) const {
    constexpr uint32_t kPieces = 2 * Config::kDim / 16;
    const uint8_t* values = p.values + batch * p.value_batch + kv_head * p.value_head;
    for (uint32_t piece = thread; piece < rows * kPieces; piece += kRebuildThreads) {
      const uint32_t row = piece / kPieces, chunk = piece % kPieces;
      const int64_t at = int64_t{head} * p.listed + first + static_cast<int32_t>(row);
      *reinterpret_cast<dev::Word4*>(p.out_values + 2 * at * Config::kDim + 16 * chunk) =
          dev::load_volatile(
              reinterpret_cast<const dev::Word4*>(values + token(row) * p.value_token) + chunk);
    }
  }
};

// Grid [entries / kRebuildTokens, heads] of kRebuildThreads.
template <class Config>
TAMIS_DEVICE void rebuild(const RebuildParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const Rebuild<Config> b(p);
  float c[Config::kTiles][4] = {};
  b.request(0, 0);
  dev::commit_async();
  uint32_t stage = 0;
  for (int32_t from = 0; from < p.rank; from += kRebuildStep, stage = 1 - stage) {
    dev::wait_async<0>();
    dev::sync_block();  // nobody reads the other stage any more, either
    if (from + kRebuildStep < p.rank) b.request(from + kRebuildStep, 1 - stage);
    dev::commit_async();
    b.multiply(stage, c);
  }
  dev::sync_block();
#pragma unroll
  for (uint32_t n = 0; n < Config::kTiles; ++n) {
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t row = 16 * b.warp + 8 * r + b.lane / 4;
      dev::store_shared<dev::Word2>(row * Config::kPitch + 4 * (8 * n + 2 * (b.lane % 4)),
                                    {dev::bits_of(c[n][2 * r]), dev::bits_of(c[n][2 * r + 1])});
    }
  }
  dev::sync_block();
  const int32_t left = p.listed - b.first;
  const auto rows = static_cast<uint32_t>(left < kRebuildTokens ? left : kRebuildTokens);
  const auto fours = static_cast<uint32_t>(Config::kDim - p.pairs) / 4;  // of a row
  for (uint32_t i = b.thread; i < rows * fours; i += kRebuildThreads) {
    b.turn(i / fours, 4 * static_cast<int32_t>(i % fours));
  }
  b.copy_values(rows);
}

}  // namespace tamis
