// gap: 16-bit weights as streams of kept values with 4-bit gaps, 32 rows side by side, in the order
// in which the lanes of a warp multiply them. A packed form for CUDA: derived from bitmap or nm at
// load, never serialized.
//
//   offsets  [slices + 1]  u32, in units of 128 bytes: slice s owns records[128 * offsets[s],
//                          128 * offsets[s + 1])
//   records  [bytes]       per slice: rows [32] u32, firsts [parts, 32] u16 and zeros up to a
//                          multiple of 128 bytes, then steps of 640 bytes: values [32, 8] u16,
//                          gaps [32] u32
//
// Lane l of a slice is row rows[l], UINT32_MAX where there are no more rows. Its entries are the
// row's kept values in order, eight a step; an entry's column is that of the entry before plus its
// gap, 0 to 15. Where the next kept column is farther, entries of value zero lie between, and zeros
// with gap 0 fill the last steps of a slice. Gaps 0 to 3 of a step are the low nibbles of bytes 0
// to 3, gaps 4 to 7 the high ones, so that one mask makes bytes of four of them, and a column is a
// dot product of bytes.
//
// Parts are what warps share out: part p is steps [n * p / parts, n * (p + 1) / parts) of a slice's
// n, and firsts[p][l] the column from which lane l counts there.
//
// Rows are sorted by their number of entries, the longest first, so that the lanes of a slice end
// together, and those of equal numbers by index.
//
// Bytes: 2.5 per entry, and 128 + 64 * parts a slice, and half a step on average. Of random places
// a kept value has 1 / (1 - (1 - d)^15) entries: 1.00 at density d = 0.5, 1.04 at 0.2, 1.26 at 0.1.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "format/matrix.h"
#include "format/t16.h"

namespace tamis::gap {

inline constexpr int64_t kLanes = 32, kStepEntries = 8, kMaxGap = 15;
inline constexpr int64_t kUnit = 128;  // of offsets
inline constexpr int64_t kRowBytes = 4 * kLanes;
inline constexpr int64_t kValueBytes = 2 * kLanes * kStepEntries;
inline constexpr int64_t kStepBytes = kValueBytes + 4 * kLanes;
static_assert(kStepBytes % kUnit == 0 && kRowBytes % kUnit == 0, "offsets count units");
inline constexpr int64_t kMaxCols = 65536;  // firsts

constexpr int64_t slices(int64_t rows) {
  return ceil_div(rows, kLanes);
}
// Bytes of a slice before its steps.
constexpr int64_t header_bytes(int64_t parts) {
  return kRowBytes + ceil_div(2 * kLanes * parts, kUnit) * kUnit;
}
// Parts of each slice, a power of two: warps for a whole device where there are few slices.
constexpr int32_t parts_of(int64_t rows) {
  return slices(rows) >= 256 ? 8 : slices(rows) >= 96 ? 16 : slices(rows) >= 48 ? 32 : 64;
}

// `a`: bitmap or nm, f16 or bf16, at most 65536 columns, already checked. Fails on others, and when
// offsets cannot say the records' bytes.
Status pack_sizes(const MatrixView& a, int32_t parts, t16::Sizes* sizes);

// Writes offsets[sizes.offsets] and records[sizes.record_bytes], padding included.
Status pack(const MatrixView& a, int32_t parts, uint32_t* offsets, void* records);

// Writes all rows * cols elements of `out`, zeros included: the inverse of pack.
void unpack(const PackedView& a, uint16_t* out, int64_t out_stride);

// Everything a kernel relies on: offsets rise, rows are each there once, columns are
// inside and parts begin where the part before ends.
Status check(const PackedView& a);

}  // namespace tamis::gap
