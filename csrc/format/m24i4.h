// m24i4: m24i8 whose codes lie in [-8, 7] and take 4 bits. A packed form for CUDA: derived from nm
// (2:4 and 1:4) of i8 at load, never serialized; scales stay apart.
//
//   records  [tiles]  384 bytes per tile: places [32] u32 as of m24i8, codes [32 lanes][2] u32
//
// A lane's word i has in the low half of byte j element 16i + 4t + j of row g, in the high half the
// same of row g + 8. So four codes of a row, times 16, are one AND, the others a shift and an AND.
//
// Bytes: 0.375 per weight.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "format/m24i8.h"

namespace tamis::m24i4 {

inline constexpr int64_t kPlaceBytes = m24i8::kPlaceBytes;
inline constexpr int64_t kCodeBytes = 256;
inline constexpr int64_t kRecordBytes = kPlaceBytes + kCodeBytes;
inline constexpr float kUnit = 1.0f / 16;  // of the bytes that kernels make of codes

constexpr int64_t record_bytes(int64_t rows, int64_t cols) {
  return t16::row_tiles(rows) * t16::col_tiles(cols) * kRecordBytes;
}

// `a`: nm with at most 2 kept of 4, i8, already checked. Writes record_bytes(rows, cols); fails
// with no_kernel on a code of more than 4 bits.
Status pack(const MatrixView& a, void* records);

// Writes all rows * cols codes, zeros included: the inverse of pack.
void unpack(int64_t rows, int64_t cols, const void* records, int8_t* out, int64_t out_stride);

}  // namespace tamis::m24i4
