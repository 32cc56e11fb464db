// What the t16 kernels get, and the shared memory they and the plan agree on.
#pragma once

#include <cstdint>

#include "format/m24.h"
#include "format/m24i4.h"
#include "format/m24i8.h"
#include "format/t16i8.h"
#include "ops/spmm/product_params.h"
#include "ops/spmm/spmm.h"

namespace tamis {

// Records a warp has on their way. 16 warps per SM with 2 of 1.2 KB each in flight cover 3.35 TB/s
// * 0.7 us / 132 = 18 KB per SM on an H100; the others absorb uneven progress.
inline constexpr int32_t kStages = 4;
inline constexpr int32_t kBlockWarps = 8;
inline constexpr int32_t kBlockThreads = 32 * kBlockWarps;

// Shared memory of a block: the flag of the last block, one mbarrier per warp and stage, x
// [m, x_pitch], the rings [kBlockWarps, kStages, stage]. Warps that split k add up over x.
inline constexpr int32_t kFlagAt = 0;
inline constexpr int32_t kBarriersAt = 16;
inline constexpr int32_t kXAt = kBarriersAt + 8 * kBlockWarps * kStages;
static_assert(kXAt % 16 == 0, "x is copied in 16 bytes");

// tickets [blocks_n], partial [splits, row tiles, accumulators, 32].
struct SpmmT16Params : ProductParams {
  int32_t row_tiles = 0, col_tiles = 0;
  int32_t warps_k = 0, splits = 0;
  int32_t x_pitch_bytes = 0, stage_bytes = 0;
};

// The plan with that layout: 1, 2, 4 or 8 warps of a block and 1 to column tiles blocks over k.
SpmmCudaPlan lay_out_spmm_t16(const PackedView& w, int64_t m, int32_t warps_k, int32_t splits);

SpmmT16Params spmm_t16_params(const SpmmCudaArgs& args, const SpmmCudaPlan& plan);

// Products of codes: tiles of kStepColumns columns that share a step of x, which parts of k keep
// together. Up to kCodesHere tokens each block rounds its own x; more are rounded once, by a kernel
// before, whose codes [m, padded k] and steps [chunks, kMaxTokens] lie in the workspace.
inline constexpr int32_t kChunkTiles = static_cast<int32_t>(kStepColumns / t16::kTileCols);
inline constexpr int64_t kCodesHere = 8;

struct SpmmI8Params {
  SpmmT16Params base;   // its x: 16-bit floats, or none where codes are given
  const float* scales;  // [rows, groups]
  int32_t groups,
      group_tiles;      // tiles of a group; 0: whole rows
  const int8_t* codes;  // [m, chunks * kStepColumns] or null
  const float* steps;   // [chunks, kMaxTokens]
  int32_t steps_at;     // shared memory: [chunks of a block, 8 * token tiles] f32
};

struct QuantizeXParams {
  const uint16_t* x;
  int64_t x_stride;
  int32_t m, cols, chunks;
  bool x_aligned;
  int8_t* codes;
  float* steps;
};

SpmmI8Params spmm_i8_params(const SpmmCudaArgs& args, const SpmmCudaPlan& plan);
QuantizeXParams quantize_x_params(const SpmmCudaArgs& args, const SpmmCudaPlan& plan);

struct ExpandT16Params {
  const uint8_t* records;
  const uint32_t* offsets;
  uint16_t* out;
  int64_t out_stride;
  const float* scales;  // [rows, groups] where weights are 8-bit codes
  int32_t groups, group_size;
  DType dtype;  // of out: bf16 or f16
  int32_t rows, cols;
  int32_t row_tiles, col_tiles;
  int32_t stage_bytes;  // shared memory of a warp: the longest record of t16
  bool out_aligned;     // rows of out start at multiples of 16 bytes
};

ExpandT16Params expand_t16_params(const PackedView& w, void* out, int64_t out_stride);

}  // namespace tamis
