// m24i8: weights of 8 bits of which at most two of every four columns are kept, in tiles of 16 x
// 64, in the order in which the lanes of a warp feed sparse tensor cores (mma.sp m16n8k64). A
// packed form for CUDA: derived from nm (2:4 and 1:4) of i8 at load, never serialized; scales stay
// apart.
//
//   records  [tiles]  640 bytes per tile: places [32] u32, codes [32 lanes][16] i8; tile i = row
//                     tile i / col_tiles, column tile i % col_tiles, as in t16
//
// Kept element e of a row of a tile (0 to 31) is one of two of columns 4 (e / 2) to 4 (e / 2) + 3.
// Lane l = 4g + t holds elements 4t to 4t + 3 of row g, of row g + 8, then 16 + 4t to 19 + 4t of
// both. places[4g + 2c + h] has for elements 16c to 16c + 15 of row g + 8h two bits each, which
// column of its four. The two places of four columns rise; where fewer are kept, a code is zero.
//
// Bytes: 0.625 per weight.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "format/matrix.h"
#include "format/t16.h"

namespace tamis::m24i8 {

inline constexpr int64_t kPlaceBytes = 128;
inline constexpr int64_t kCodeBytes = 512;
inline constexpr int64_t kRecordBytes = kPlaceBytes + kCodeBytes;

constexpr int64_t record_bytes(int64_t rows, int64_t cols) {
  return t16::row_tiles(rows) * t16::col_tiles(cols) * kRecordBytes;
}

// `a`: nm with at most 2 kept of 4, i8, already checked. Writes record_bytes(rows, cols).
Status pack(const MatrixView& a, void* records);

// Writes all rows * cols codes, zeros included: the inverse of pack.
void unpack(int64_t rows, int64_t cols, const void* records, int8_t* out, int64_t out_stride);

}  // namespace tamis::m24i8
