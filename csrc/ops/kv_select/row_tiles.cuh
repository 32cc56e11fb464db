// Products of rows with rows on tensor cores: a block keeps one tile of rows in shared memory and
// lets tiles of 64 others pass by. Rows of another dtype than 16 bits on both sides are split into
// bf16 and the rest in bf16: three products, 2^-16 of each. Shared memory: chunk c of 16 bytes of a
// row r lies at c ^ (r & 7), so eight rows meet in no bank.
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "base/dtype.h"
#include "ops/kv_select/row_tiles.h"

namespace tamis {

template <DType kTypeOf, int kRowTilesOf>
struct TileConfig {
  static constexpr DType kType = kTypeOf;        // of both operands; f32: any, split in two
  static constexpr int kRowTiles = kRowTilesOf;  // of 16 kept rows, of a warp
  static constexpr bool kSplit = kType == DType::f32;
  static constexpr int32_t kKept = 16 * kRowTiles * kTileWarps;
  static constexpr int kTiles = kTileStream / 8;  // of streamed rows
  static constexpr DType kProducts = kSplit ? DType::bf16 : kType;
};

// Four neighbours of a row of any dtype.
TAMIS_DEVICE void load_four(DType type, const uint8_t* row, int32_t from, float (&x)[4]) {
  if (type == DType::f32) {
    const dev::Word4 w = dev::load_volatile(reinterpret_cast<const dev::Word4*>(row) + from / 4);
    x[0] = dev::float_of(w.x);
    x[1] = dev::float_of(w.y);
    x[2] = dev::float_of(w.z);
    x[3] = dev::float_of(w.w);
    return;
  }
  const dev::Word2 w = dev::load_volatile(reinterpret_cast<const dev::Word2*>(row) + from / 4);
  const uint32_t pairs[2] = {w.x, w.y};
  for (int i = 0; i < 4; ++i) {
    const auto bits = static_cast<uint16_t>(pairs[i / 2] >> (16 * (i % 2)));
    x[i] = widen(type, bits);
  }
}

template <class Config>
struct RowTiles {
  static constexpr int kRowTiles = Config::kRowTiles;
  int32_t dim, row_bytes;
  uint32_t thread, warp, lane;
  // Pieces of a row that a thread copies: 16 bytes, or four elements that are split. Its first
  // piece, and how far its next one is: numbers that no loop divides for.
  int32_t pieces, own_row, own_piece, next_row, next_piece;

  TAMIS_DEVICE RowTiles(int32_t width, int32_t bytes)
      : dim(width),
        row_bytes(bytes),
        thread(dev::thread_index()),
        warp(dev::thread_index() / 32),
        lane(dev::thread_index() % 32),
        pieces(width / (Config::kSplit ? 4 : 8)) {
    const auto mine = static_cast<int32_t>(thread);
    own_row = mine / pieces;
    own_piece = mine % pieces;
    next_row = kTileThreads / pieces;
    next_piece = kTileThreads % pieces;
  }

  TAMIS_DEVICE uint32_t place(uint32_t row, uint32_t chunk) const {
    return row * static_cast<uint32_t>(row_bytes) + 16 * (chunk ^ (row & 7));
  }

  // A tile of `count` rows to shared memory at `to`: row i is that of number row_of(i), `step`
  // bytes apart from `source` on; zeros where the number is below 0. To be committed and waited
  // for.
  template <class RowOf>
  TAMIS_DEVICE void load(DType type, const uint8_t* source, int64_t step, int32_t count,
                         uint32_t to, const RowOf& row_of) const {
    for (int32_t row = own_row, piece = own_piece; row < count;
         row += next_row, piece += next_piece) {
      if (piece >= pieces) {
        piece -= pieces;
        if (++row == count) break;
      }
      const int32_t from = row_of(row);
      if constexpr (Config::kSplit) {
        const int32_t c = 4 * piece;
        float x[4] = {};
        if (from >= 0) load_four(type, source + from * step, c, x);
        uint32_t high[2], low[2];
        for (int j = 0; j < 2; ++j) {
          high[j] = dev::pack_bf16(x[2 * j], x[2 * j + 1]);
          low[j] = dev::pack_bf16(
              dev::add(x[2 * j], -dev::bf16_to_f32(static_cast<uint16_t>(high[j]))),
              dev::add(x[2 * j + 1], -dev::bf16_to_f32(static_cast<uint16_t>(high[j] >> 16))));
        }
        const auto r = static_cast<uint32_t>(row), chunk = static_cast<uint32_t>(c / 8);
        const uint32_t half = 2 * static_cast<uint32_t>(c % 8);
        dev::store_shared<dev::Word2>(to + place(r, chunk) + half, {high[0], high[1]});
        dev::store_shared<dev::Word2>(to + place(r, static_cast<uint32_t>(dim / 8) + chunk) + half,
                                      {low[0], low[1]});
      } else {
        dev::copy_async16(to + place(static_cast<uint32_t>(row), static_cast<uint32_t>(piece)),
                          source + (from >= 0 ? from : 0) * step + 16 * piece, from >= 0 ? 16 : 0);
      }
    }
  }

  // c[m][n]: products of rows 16 m + group (+ 8) of the tile at `kept_at` and rows 8 n + 2 t (+ 1)
  // of that at `streamed_at`, of which there are `streamed`.
  TAMIS_DEVICE void score(uint32_t kept_at, uint32_t streamed_at, int32_t streamed,
                          float (&c)[kRowTiles][Config::kTiles][4]) const {
    const uint32_t half = lane / 16, low = 16 * static_cast<uint32_t>(dim / 8);
    const uint32_t kept = place(16 * kRowTiles * warp + lane % 16, half);
    const uint32_t passing = place(lane % 8 + 8 * half, lane / 8 % 2);
    const auto row = static_cast<uint32_t>(row_bytes);
    const uint32_t width = 2 * static_cast<uint32_t>(dim);
    const auto pairs = static_cast<uint32_t>(streamed + 15) / 16;
    const auto multiply = [&](uint32_t a_from, uint32_t b_from) {
      for (uint32_t step = 0; step < width; step += 32) {
        dev::Word4 a[kRowTiles];
#pragma unroll
        for (uint32_t m = 0; m < kRowTiles; ++m) {
          a[m] = dev::load_matrices(kept_at + (kept ^ (a_from + step)) + 16 * m * row);
        }
#pragma unroll
        for (uint32_t pair = 0; pair < Config::kTiles / 2; ++pair) {
          if (pair >= pairs) break;  // the same in every thread
          const dev::Word4 b =
              dev::load_matrices(streamed_at + (passing ^ (b_from + step)) + 16 * pair * row);
#pragma unroll
          for (uint32_t m = 0; m < kRowTiles; ++m) {
            tamis::multiply<Config::kProducts>(c[m][2 * pair], a[m], b.x, b.y);
            tamis::multiply<Config::kProducts>(c[m][2 * pair + 1], a[m], b.z, b.w);
          }
        }
      }
    };
    multiply(0, 0);
    if constexpr (Config::kSplit) {
      multiply(low, 0);
      multiply(0, low);
    }
  }
};

}  // namespace tamis
