// What the gap kernel gets, and the shared memory it and the plan agree on.
#pragma once

#include <cstdint>

#include "format/gap.h"
#include "ops/spmm/product_params.h"

namespace tamis {

inline constexpr int64_t kMaxGapTokens = 4;
inline constexpr int32_t kMaxGapWarps = 16;  // of a block

// Shared memory of a block: the flag of the last block, sums of its warps [warps, tokens, 32] f32,
// x [k, tokens], where a slot of x is 1, 2 or 4 tokens.
inline constexpr int32_t kGapFlagAt = 0;
inline constexpr int32_t kGapSumsAt = 16;
constexpr int32_t gap_x_at(int32_t warps, int32_t tokens) {
  return kGapSumsAt + 128 * warps * tokens;
}

// tickets [slices], partial [splits, slices, tokens, 32].
struct SpmmGapParams : ProductParams {
  int32_t slices = 0, parts_log2 = 0;
  int32_t warps = 0, splits = 0;  // of a block; blocks of a slice: warps * splits are its parts
  uint32_t header_units = 0;      // of a slice before its steps
  uint32_t x_at = 0;              // in shared memory
};

// The plan with that many warps a block, a divisor of the parts.
SpmmCudaPlan lay_out_spmm_gap(const PackedView& w, int64_t m, int32_t warps);

SpmmGapParams spmm_gap_params(const SpmmCudaArgs& args, const SpmmCudaPlan& plan);

inline constexpr int32_t kGapExpandWarps = 8;  // of a block

struct ExpandGapParams {
  const uint8_t* records;
  const uint32_t* offsets;
  uint16_t* out;
  int64_t out_stride;
  int32_t slices, parts;
  uint32_t header_units;
  bool out_aligned;  // its rows, to 16 bytes
};

ExpandGapParams expand_gap_params(const PackedView& w, void* out, int64_t out_stride);

}  // namespace tamis
