// d24: p24's groups of two of four columns, of the 32 rows of two row tiles, so that what a product
// of many tokens collects of x from shared memory serves both tiles. A packed form for CUDA:
// derived from bitmap or nm at load, never serialized.
//
//   offsets  [units + 1]  u32: unit u owns records[offsets[u], offsets[u + 1]);
//                         u = row pair * panels + panel, where a panel is
//                         p24::panel_cols(cols, panels) columns, kMaxPanelCols at most
//   records  heads [32] {places u32, columns [2] u16} of p24's pairs, places of the first tile;
//            places [32] u32 of the second one; values [2 tiles][2 steps][32 lanes][8]
//
// Steps, slots, columns, places and values are p24's, but for the number of a chunk: groups come in
// any order.
//
// Bytes: 1.19 a weight of groups of four columns, which 32 rows match less often than 16: of random
// halves most have three, 1.46 to 1.5 bytes a weight; of 0.4 kept nearly all have four.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/status.h"
#include "format/p24.h"

namespace tamis::d24 {

inline constexpr int64_t kPairRows = 2 * t16::kTileRows;
inline constexpr int64_t kRecordBytes = 256 + 128 + 2 * p24::kValueBytes;
inline constexpr int64_t kMaxPanelCols = 1808;  // 64 tokens of as many fit in 227 KB
inline constexpr int64_t kUsualPanelCols = 1024;

constexpr int64_t row_pairs(int64_t rows) {
  return ceil_div(rows, kPairRows);
}
// Panels of a weight: of those that leave at most kMaxPanelCols and not much less than
// kUsualPanelCols the ones that share work best over the 132 SMs of an H200, a block of up to 12
// row pairs of one panel each.
constexpr int32_t panels_of(int64_t rows, int64_t cols) {
  constexpr int64_t kBlocks = 132, kOfBlock = 12;
  const int64_t pairs = row_pairs(rows);
  const int64_t fewest = cols > kMaxPanelCols ? ceil_div(cols, kMaxPanelCols) : 1;
  int64_t best = 0, least = 0;
  for (int64_t panels = fewest; panels == fewest || cols >= kUsualPanelCols * panels; ++panels) {
    const int64_t shares = panels < kBlocks ? kBlocks / panels : 1;  // blocks of a panel
    const int64_t of_block = std::min(kOfBlock, ceil_div(pairs, shares));
    const int64_t rounds = ceil_div(ceil_div(pairs, of_block) * panels, kBlocks);
    const int64_t cost = rounds * of_block * p24::panel_cols(cols, panels);
    if (best == 0 || cost < least) best = panels, least = cost;
  }
  return static_cast<int32_t>(best);
}

// `a`: bitmap or nm, f16 or bf16, already checked.
Status pack(const MatrixView& a, int32_t panels, p24::Packed* packed);

// Writes all rows * cols elements of `out`, zeros included: the inverse of pack.
void unpack(const T16View& a, uint16_t* out, int64_t out_stride);

// Everything a kernel relies on: offsets and places rise, columns are inside their panel.
Status check(const T16View& a);

}  // namespace tamis::d24
