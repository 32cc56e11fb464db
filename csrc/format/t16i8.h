// t16i8: weights of 8 bits in tiles of 16 x 64, one contiguous record each, in the order in which
// the lanes of a warp feed tensor cores (mma m16n8k32). A packed form for CUDA: derived from bitmap
// or nm of i8 at load, never serialized; scales stay apart.
//
//   offsets  [tiles + 1]   as of t16
//   records  [bytes]       per tile: words [32] u32, before [32][4] u8, starts [4] u16, units u16,
//                          six zero bytes, codes [kept] i8, zeros up to the next multiple of 16
//
// Words are t16's: lane l = 4g + t of a warp owns words[l], of whose byte s bits 0 to 3 are row g,
// columns 16t + 4s to 16t + 4s + 3, bits 4 to 7 the same columns of row g + 8. A run is one byte of
// all lanes; runs are stored one after another, inside a run codes by lane, inside a lane by bit.
// starts[s] is where run s begins, in bytes from the start of the record, before[l][s] how many of
// its codes belong to lanes before l, units the record's length in 16 bytes. So a lane finds up to
// eight codes of a run in three words, which at half density lie in other banks than other lanes'.
// A prefix sum over the lanes instead of `before` saves 128 bytes and costs 16 instructions that
// wait for each other (bench/results/gpu.md).
//
// Rows and columns beyond the matrix have no bits. Explicit zeros are kept.
// Bytes: kept + 272 per tile + 8 on average to align = d + 0.273 per weight.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "format/matrix.h"
#include "format/t16.h"

namespace tamis::t16i8 {

inline constexpr int64_t kWordBytes = 128, kBeforeBytes = 128, kStartBytes = 16;
inline constexpr int64_t kStartsAt = kWordBytes + kBeforeBytes;
inline constexpr int64_t kHeaderBytes = kStartsAt + kStartBytes;

// `a`: bitmap or nm of i8, already checked. Fails on other formats and dtypes, and when the records
// pass the 64 GiB that offsets can say.
Status pack_sizes(const MatrixView& a, t16::Sizes* sizes);

// Writes offsets[sizes.offsets] and records[sizes.record_bytes], padding included.
Status pack(const MatrixView& a, uint32_t* offsets, void* records);

// Writes all rows * cols codes, zeros included: the inverse of pack.
void unpack(const PackedView& a, int8_t* out, int64_t out_stride);

}  // namespace tamis::t16i8
