// sell4: codes of 4 bits in units of 16 columns, kept or dropped whole, in sliced ELLPACK: 32 rows
// are a slice, one for each lane of a warp, and a step is one unit of each. A packed form for CUDA
// and few tokens: derived from groupq of u4 at load, never serialized.
//
//   offsets  [33 * slices + 1]  u32: slice s owns records offsets[s] to offsets[s + 1] - 1; after
//                               slices + 1 of these, the row of every lane, kNoRow for none
//   records  [count][1536]      four steps: codes [2][32][2][2] u32 of steps 0 and 1, of 2 and 3,
//                               by lane; units [32][4] u32 by lane
//
// A unit's word: scale, f16, in the low half; zero point, a whole number from 0 to 15, in bits 16
// to 19; column / 16 in bits 20 to 31. Its codes are in g4's order. w = scale * (code - zero); a
// lane without a unit in a step has one of scale 0. A group of 32 columns is two units.
//
// Where rows are few, lanes_of_row neighbouring lanes share the units of one, so that slices are as
// many as the blocks that a device has room for.
//
// Rows go to slices by their number of units, those with as many in ascending order, so that lanes
// of a slice end together. Inside a row units are in any order: lanes 8i to 8i + 7 of a step read
// columns that differ in bits 4 to 6 wherever possible, for then their x lies in different banks.
// At half of the groups, at random, such a read takes 1.13 wavefronts and not 2.6.
//
// Bytes: 12 per kept unit, some 2 % to fill slices and records: 0.77 d per weight.
// After: Kreutzer et al. 2014, SELL-C-sigma (arXiv:1307.6209).
#pragma once

#include <cstdint>

#include "base/status.h"
#include "format/matrix.h"
#include "format/t16.h"

namespace tamis::sell4 {

inline constexpr int64_t kLanes = 32, kUnitColumns = 16;
inline constexpr int64_t kSteps = 4;  // of a record
inline constexpr int64_t kRecordBytes = 12 * kLanes * kSteps;
inline constexpr int64_t kMaxColumns = int64_t{1} << 16;  // 12 bits of units
inline constexpr uint32_t kNoRow = UINT32_MAX;
inline constexpr int64_t kBanks = 8;  // places for 16 bytes beside each other in shared memory

// A power of two: of 1056 rows or fewer an H200 has a slice for each of its 132 SMs by four lanes.
constexpr int64_t lanes_of_row(int64_t rows) {
  constexpr int64_t kSlices = 132, kMost = 4;
  int64_t lanes = 1;
  while (lanes < kMost && 2 * lanes * rows <= kSlices * kLanes) lanes *= 2;
  return lanes;
}
constexpr int64_t slices(int64_t rows) {
  return ceil_div(rows * lanes_of_row(rows), kLanes);
}

// `a`: groupq of u4, already checked. Fails on other formats, where a zero point is no code, and
// above kMaxColumns.
Status pack_sizes(const MatrixView& a, t16::Sizes* sizes);

// Writes offsets[sizes.offsets] and records[sizes.record_bytes].
Status pack(const MatrixView& a, uint32_t* offsets, void* records);

}  // namespace tamis::sell4
