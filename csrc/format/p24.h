// p24: 16-bit weights of any zeros, the columns of every 16 rows put together in such groups that
// sparse tensor cores (mma.sp m16n8k32) take them: of a group's four columns a row keeps at most
// two, or of three at most one. A packed form for CUDA: derived from bitmap or nm at load, never
// serialized.
//
//   offsets  [units * halves + 1]  u32: unit u owns records[offsets[u * halves],
//                         offsets[(u + 1) * halves]); u = row tile * panels + panel, where a panel
//                         is panel_cols(cols, panels) columns; of a wide panel, halves_of 2, the
//                         first half of them has the columns before half_end alone, the second
//                         those from half_begin on
//   records  of two of four: heads [32] {places u32, columns [2] u16},
//            values [2 steps][32 lanes][8]; of one of three: places [32] u32, columns [24][4] u16,
//            values [2][32 lanes][2][4], where step 2i + j lies at [i][lane][j]
//
// A step is eight groups, the 32 columns of one m16n8k32 product: group i has slots 4i to 4i + 3
// (of three columns the last slot repeats the third, and no row keeps it). The column of a slot is
// said by where it lies in shared memory, byte_of_column from the panel's first. Slots without a
// column repeat one, and their values are zero.
//
// Records follow the columns (column_groups.h). A record says in which chunk of 64 the last column
// lies that it or one before it has, in the lowest bits of the columns of its first step, which are
// no part of where a column lies: bit 0 of that of lane chunk_lane(i) is bit i of the chunk.
//
// Lane l = 4g + t of two of four has the columns of slot l of both steps, and values and places as
// m24 says. Of one of three it has, of each step, the element of group t of rows g and g + 8, then
// those of group t + 4; places of steps 2i and 2i + 1, i = t / 2, are in the low and high two bits
// of every four, where m24 has the first place; the second one is 3.
//
// Bytes: 1.25 a weight of two of four, 0.875 of one of three, and what does not match: of 4096
// columns of which each row keeps half at random, 2 %, of which the last record's room is a third.
// After: Zhang et al. 2024 (Jigsaw), who reorder the columns of tiles for 2:4.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "format/m24.h"
#include "format/matrix.h"
#include "format/t16.h"

namespace tamis::p24 {

inline constexpr int64_t kMaxPanelCols = 4096;  // bytes of a column are 16 bits
inline constexpr int64_t kColumnBytes = 16;     // of 8 tokens
inline constexpr int64_t kChunkCols = 64;
inline constexpr int kChunkBits = 6;  // of the number of a chunk
inline constexpr int64_t kValueBytes = 1024;
inline constexpr int64_t kPairBytes = 256 + kValueBytes;          // a record of two of four
inline constexpr int64_t kTripleBytes = 128 + 192 + kValueBytes;  // a record of one of three

constexpr int64_t panel_cols(int64_t cols, int64_t panels) {
  return ceil_div(ceil_div(cols, panels), 8) * 8;
}
// Panels of a weight: as few as 16 bits allow, and more where row tiles alone are too few for a
// device. (2048 columns a panel cost an H200 0.7 us more, for sums that meet, than they save.)
constexpr int32_t panels_of(int64_t rows, int64_t cols) {
  int64_t panels = cols > kMaxPanelCols ? ceil_div(cols, kMaxPanelCols) : 1;
  while (t16::row_tiles(rows) * panels < 256 && cols >= 1024 * (panels + 1)) ++panels;
  return static_cast<int32_t>(panels);
}
// Columns that are a multiple of eight apart are stored together, neighbours are read together:
// neither meet in a bank.
constexpr uint32_t byte_of_column(uint32_t column) {
  return (column ^ (column >> 3 & 7u)) * static_cast<uint32_t>(kColumnBytes);
}
constexpr int chunk_lane(int bit) {  // every fourth lane has no column of its own of one of three
  return bit + bit / 3;
}
constexpr uint32_t column_of_byte(uint32_t byte) {
  return byte_of_column(byte / kColumnBytes) / kColumnBytes;
}

// Halves of a panel, which blocks may share where they hold many tokens of x; they overlap.
inline constexpr int64_t kOverlapCols = 368;  // beyond the middle
inline constexpr int64_t kHalvesFrom = 2048;  // columns
constexpr int32_t halves_of(int64_t width) {
  return width > kHalvesFrom ? 2 : 1;
}
constexpr int64_t half_begin(int64_t width) {
  return ceil_div(width, 16) * 8 - kOverlapCols;
}
constexpr int64_t half_end(int64_t width) {
  return ceil_div(width, 16) * 8 + kOverlapCols;
}

struct Packed {
  int64_t record_bytes = 0;  // of one: kPairBytes or kTripleBytes
  std::vector<uint32_t> offsets;
  std::vector<uint8_t> records;
};

// `a`: bitmap or nm, f16 or bf16, already checked. Of the two kinds of groups those with fewer
// bytes.
Status pack(const MatrixView& a, int32_t panels, Packed* packed);

// Writes all rows * cols elements of `out`, zeros included: the inverse of pack.
void unpack(const PackedView& a, uint16_t* out, int64_t out_stride);

// Everything a kernel relies on: offsets and places rise, columns are inside their panel and not
// after what their record says.
Status check(const PackedView& a);

}  // namespace tamis::p24
