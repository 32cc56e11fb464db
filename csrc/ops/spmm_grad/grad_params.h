// What the kernels of spmm_grad get, and the memory they and the host agree on.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/cuda/device.h"
#include "ops/spmm_grad/spmm_grad_cuda.h"

namespace tamis {

inline constexpr int32_t kGradTile = 128;     // outputs of a block in both directions
inline constexpr int32_t kGradStep = 32;      // summed up a stage
inline constexpr int32_t kGradThreads = 256;  // eight warps, each 64 x 32 of the tile
inline constexpr int32_t kSddmmStages = 4, kSpmmTStages = 3;
inline constexpr int32_t kGradStageBytes = 2 * kGradTile * kGradStep;  // of one operand
inline constexpr int32_t kSddmmShared = 2 * kSddmmStages * kGradStageBytes;
inline constexpr int32_t kSpmmTShared = (kSpmmTStages + 2) * kGradStageBytes;
inline constexpr int32_t kMostGradSplits = 16;
// Of a warp that unpacks or gathers 32 words: their bits and where values begin, then the values.
inline constexpr int32_t kUnpackWarps = 4;
inline constexpr int32_t kUnpackWords = 16 * 32, kUnpackWarpBytes = kUnpackWords + 2 * 64 * 32 + 16;
inline constexpr int32_t kUnpackShared = kUnpackWarps * kUnpackWarpBytes;

// A mask and where the values of each of its words begin.
struct GradMask {
  const uint64_t* mask;        // [rows, words]
  const int64_t* row_offsets;  // [rows + 1], or null: every row has row_values
  int64_t row_values;
  int32_t rows, words;
  uint32_t* places;  // [rows, words], or null where nobody asks
};

struct SpmmTParams {
  GradMask w;
  const uint16_t* values;
  const uint16_t* dy;  // [m, n]
  int64_t dy_stride;
  uint16_t* dx;  // [m, k]
  int64_t dx_stride;
  int32_t m, k;
  int32_t splits;  // blocks that share the rows of w; each leaves a partial sum if more than one
  float* partial;  // [splits, m, k]
};

struct SddmmParams {
  GradMask w;
  const uint16_t* dy;  // [m, n]
  int64_t dy_stride;
  const uint16_t* x;  // [m, k]
  int64_t x_stride;
  uint16_t* dw;
  int32_t m, k;
};

// w, or its gradient, beside a dense one.
struct DenseParams {
  GradMask w;
  uint16_t* values;
  uint16_t* dense;  // [rows, k]
  int32_t k;
  int32_t parts;  // of 32 words of a row
  int64_t nnz;
};

// Blocks over the rows of w, so that a few tokens keep a device busy.
inline int32_t spmm_t_splits(int64_t m, int64_t n, int64_t k, const CudaDevice& device) {
  const int64_t tiles = std::max<int64_t>(1, ceil_div(m, kGradTile) * ceil_div(k, kGradTile));
  const int64_t most = std::clamp<int64_t>(n / (8 * kGradStep), 1, kMostGradSplits);
  return static_cast<int32_t>(std::clamp<int64_t>(2 * device.sms / tiles, 1, most));
}

// Params of a call that was checked.
SpmmTParams spmm_t_params(const SpmmTArgs& args, void* workspace, const CudaDevice& device);
SddmmParams sddmm_params(const SddmmArgs& args, void* workspace);
DenseParams dense_params(const MatrixView& w, void* values, void* dense);
Status check_dense(const char* op, const MatrixView& w, const void* dense);

}  // namespace tamis
