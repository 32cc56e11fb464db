// Records of their own lengths, one for each tile of 16 x 64: their sizes and offsets.
//
// Every function takes `for_tiles`, which calls fn(index, tile) for the tiles of a range of row
// tiles in order, and `units`, the length of a tile's record in units of t16::kUnit.
#pragma once

#include <algorithm>
#include <atomic>

#include "base/numeric.h"
#include "base/status.h"
#include "format/masked.h"
#include "format/rows.h"
#include "format/t16.h"

namespace tamis {

// A tile of bitmap or nm weights: of each row its mask, zero beyond the matrix, and the index of
// its first value.
struct MaskTile {
  uint64_t mask[t16::kTileRows] = {};
  int64_t first[t16::kTileRows] = {};

  int64_t kept() const {
    int64_t sum = 0;
    for (const uint64_t word : mask) sum += popcount(word);
    return sum;
  }
};

// The for_tiles of bitmap and nm weights.
struct MaskTiles {
  const MatrixView& a;

  template <class Fn>
  void operator()(int64_t begin, int64_t end, const Fn& fn) const {
    const int64_t across = t16::col_tiles(a.cols);
    for (int64_t rt = begin; rt < end; ++rt) {
      MaskTile tile;
      const int64_t rows = std::min(t16::kTileRows, a.rows - rt * t16::kTileRows);
      for (int64_t r = 0; r < rows; ++r) tile.first[r] = first_value(a, rt * t16::kTileRows + r);
      for (int64_t ct = 0; ct < across; ++ct) {
        for (int64_t r = 0; r < rows; ++r) {
          tile.mask[r] = a.mask[(rt * t16::kTileRows + r) * across + ct];
        }
        fn(rt * across + ct, tile);
        for (int64_t r = 0; r < rows; ++r) tile.first[r] += popcount(tile.mask[r]);
      }
    }
  }
};

// Fails where the records pass the 64 GiB that offsets can say.
template <class ForTiles, class Units>
Status record_sizes(const char* name, const MatrixView& a, const ForTiles& for_tiles,
                    const Units& units, t16::Sizes* sizes) {
  std::atomic<int64_t> total{0}, longest{0};
  for_rows(t16::row_tiles(a.rows), a.cols * t16::kTileRows, [&](int64_t begin, int64_t end) {
    int64_t sum = 0, most = 0;
    for_tiles(begin, end, [&](int64_t, const auto& tile) {
      const int64_t length = units(tile);
      sum += length;
      most = std::max(most, length);
    });
    total.fetch_add(sum, std::memory_order_relaxed);
    int64_t seen = longest.load(std::memory_order_relaxed);
    while (seen < most && !longest.compare_exchange_weak(seen, most)) {
    }
  });
  if (total > UINT32_MAX) {
    return error(Code::invalid_argument,
                 "%s: w: got records of %lld bytes, wanted at most 16 * (2^32 - 1)", name,
                 static_cast<long long>(total * t16::kUnit));
  }
  *sizes = {.offsets = t16::row_tiles(a.rows) * t16::col_tiles(a.cols) + 1,
            .record_bytes = total * t16::kUnit,
            .max_record_bytes = longest * t16::kUnit};
  return {};
}

// Writes offsets, then calls write(index, tile, record, bytes) for every tile.
template <class ForTiles, class Units, class Write>
void write_records(const MatrixView& a, const ForTiles& for_tiles, const Units& units,
                   const Write& write, uint32_t* offsets, void* records) {
  const int64_t down = t16::row_tiles(a.rows), tiles = down * t16::col_tiles(a.cols);
  const auto for_all = [&](const auto& fn) {
    for_rows(down, a.cols * t16::kTileRows,
             [&](int64_t begin, int64_t end) { for_tiles(begin, end, fn); });
  };
  offsets[0] = 0;
  for_all(
      [&](int64_t i, const auto& tile) { offsets[i + 1] = static_cast<uint32_t>(units(tile)); });
  for (int64_t i = 0; i < tiles; ++i) offsets[i + 1] += offsets[i];
  for_all([&](int64_t i, const auto& tile) {
    write(i, tile, static_cast<uint8_t*>(records) + int64_t{offsets[i]} * t16::kUnit,
          (int64_t{offsets[i + 1]} - offsets[i]) * t16::kUnit);
  });
}

}  // namespace tamis
