// r24: 16-bit weights of any zeros, two of every four columns in place (2:4) and the residual, what
// a four keeps beyond two, by place, in tiles of 16 x 64, one contiguous record each. A packed form
// for CUDA: derived from bitmap or nm at load, never serialized.
//
//   offsets  [tiles + 1]   u32, in units of 16 bytes: tile i owns records[16 * offsets[i],
//                          16 * offsets[i + 1]); tile i = row tile i / col_tiles, column tile
//                          i % col_tiles
//   records  [bytes]       per tile: codes [32] u32, values [2][32 lanes][8] u16, residual [n] u32,
//                          n a multiple of four
//
// Dense products of warpgroups read a tile densely, 2 KB: rows of 128 bytes, the eight columns j of
// row r at 16 * (j ^ r % 8). Lane l of a warp writes columns 8 * (l % 8) to 8 * (l % 8) + 7 of rows
// 4s + l / 8, s = 0 to 3: fours 2s and 2s + 1 of its eight. Bits 4f to 4f + 3 of its code say which
// pair of a four's columns four f has, its two values are values[f / 4][l][f % 4 * 2] and the next.
// The residual then goes over it: the low half of an entry is a value, the high half the byte in
// the tile where it goes. Values of pairs that are not kept are zero. Of the pairs that a four of
// three or four kept columns may have, and of the order of entries, the packer takes those with
// which 32 neighbouring entries lie in 32 banks of shared memory. What fills up the residual
// repeats its last entry.
//
// Bytes: 1.125 a weight and 4 for each of the residual: 1.5 of random halves, 1.22 of 0.3 kept.
// After: Jeong et al. 2024 (TASD), who split any zeros into 2:4 and a rest.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "format/t16.h"

namespace tamis::r24 {

inline constexpr int64_t kTileBytes = 2 * t16::kTileRows * t16::kTileCols;  // densely
inline constexpr int64_t kCodeBytes = 128, kValueBytes = 1024;
inline constexpr int64_t kHeaderBytes = kCodeBytes + kValueBytes;
inline constexpr int64_t kEntryBytes = 4;
inline constexpr int kPairs = 6;  // of a four's columns, in order: 01, 02, 03, 12, 13, 23

// Where column `col` of row `row` lies in a tile.
constexpr uint32_t byte_of(uint32_t row, uint32_t col) {
  return 128 * row + 16 * (col / 8 ^ row % 8) + 2 * (col % 8);
}
constexpr uint32_t row_of(uint32_t byte) {
  return byte / 128;
}
constexpr uint32_t col_of(uint32_t byte) {
  return 8 * (byte / 16 % 8 ^ byte / 128 % 8) + byte / 2 % 8;
}

// `a`: bitmap or nm, f16 or bf16, already checked. Fails on other formats and dtypes, and when the
// records pass the 64 GiB that offsets can say.
Status pack_sizes(const MatrixView& a, t16::Sizes* sizes);

// Writes offsets[sizes.offsets] and records[sizes.record_bytes], padding included.
Status pack(const MatrixView& a, uint32_t* offsets, void* records);

// Writes all rows * cols elements of `out`, zeros included: the inverse of pack.
void unpack(const PackedView& a, uint16_t* out, int64_t out_stride);

// Everything a kernel relies on: offsets rise, records are as long as a header and whole entries,
// codes are pairs, entries lie in their tile, and nothing beyond the matrix has a value.
Status check(const PackedView& a);

}  // namespace tamis::r24
