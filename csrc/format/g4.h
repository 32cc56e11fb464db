// g4: codes of 4 bits in units of 16 columns, kept or dropped whole, in tiles of 16 x 64, in the
// order in which the lanes of a warp feed tensor cores. A packed form for CUDA: derived from groupq
// of u4 at load, never serialized.
//
//   offsets  [tiles + 1]  u32, in units of 16 bytes, as in t16
//   records  [bytes]      per tile: mask u64 and 8 zero bytes; codes [kept][2] u32; scales
//   [kept][2]
//                         f16, scale and zero point; zeros up to the next multiple of 16 bytes
//
// Bit 32 h + 4g + t of a mask is row g + 8h, columns 16t to 16t + 15: lane 4g + t of a warp owns
// two units, and kept ones lie in the order of their bits. Word i of a unit's codes holds columns
// 8i to 8i + 7: code 2j at bit 4j, code 2j + 1 at bit 16 + 4j, so that a mask leaves a pair of
// neighbours. w = scale * (code - zero), zero a whole number from 0 to 15. A group of 32 columns is
// two units.
//
// Rows and columns beyond the matrix have no bits.
// Bytes: 12 per kept unit + 16 per tile + 8 on average to align: 0.75 d + 0.024 per weight.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "format/matrix.h"
#include "format/t16.h"

namespace tamis::g4 {

inline constexpr int64_t kUnitColumns = 16;
inline constexpr int64_t kMaskBytes = 16, kCodeBytes = 8, kScaleBytes = 4;

// `a`: groupq of u4, already checked. Fails on other formats and where a zero point is no code.
Status pack_sizes(const MatrixView& a, t16::Sizes* sizes);

// Writes offsets[sizes.offsets] and records[sizes.record_bytes], padding included.
Status pack(const MatrixView& a, uint32_t* offsets, void* records);

// Whether `a` is groupq of u4 whose zero points are codes; `format` begins the sentence if not.
Status check_source(const char* format, const MatrixView& a);

// The codes of columns [first, first + 16) of a stored group, in the order above.
void unit_codes(const MatrixView& a, int64_t group, int64_t first, uint32_t (&words)[2]);

}  // namespace tamis::g4
