// m24: 16-bit weights of which at most two of every four columns are kept, in tiles of 16 x 64, in
// the order in which the lanes of a warp feed sparse tensor cores (mma.sp m16n8k32). A packed form
// for CUDA: derived from nm (2:4 and 1:4) at load, never serialized.
//
//   records  [tiles]  1152 bytes per tile: places [32] u32, values [2 steps][32 lanes][8]; tile
//                     i = row tile i / col_tiles, column tile i % col_tiles, as in t16
//
// A step is 32 columns, one m16n8k32 product. Kept element e of a row in a step (0 to 15) is one of
// two of columns 4 (e / 2) to 4 (e / 2) + 3. Lane l = 4g + t holds, of each step, elements 2t and
// 2t + 1 of row g, of row g + 8, then 8 + 2t and 9 + 2t of both. places[4g + 2 step + i] has for
// elements 8i to 8i + 7 two bits each, which column of its four: row g in the low half, row g + 8
// in the high half. The two places of four columns rise; where fewer are kept, a value is zero.
//
// Bytes: 1.125 per weight.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "format/matrix.h"
#include "format/t16.h"

namespace tamis::m24 {

inline constexpr int64_t kPlaceBytes = 128;
inline constexpr int64_t kStepBytes = 512;
inline constexpr int64_t kRecordBytes = kPlaceBytes + 2 * kStepBytes;
static_assert(kRecordBytes % t16::kUnit == 0, "records are copied in 16 bytes");

constexpr int64_t record_bytes(int64_t rows, int64_t cols) {
  return t16::row_tiles(rows) * t16::col_tiles(cols) * kRecordBytes;
}

// `a`: nm with at most 2 kept of 4, f16 or bf16, already checked. Writes record_bytes(rows, cols).
Status pack(const MatrixView& a, void* records);

// Writes all rows * cols elements of `out`, zeros included: the inverse of pack.
void unpack(int64_t rows, int64_t cols, const void* records, uint16_t* out, int64_t out_stride);

}  // namespace tamis::m24
