// What the sparse_mlp kernels get, and the memory they and the host agree on.
#pragma once

#include "base/cuda/device.h"
#include "ops/sparse_input/row_sum_params.h"
#include "ops/sparse_mlp/sparse_mlp.h"

namespace tamis {

inline constexpr int32_t kDotWarps = 8;
inline constexpr int32_t kDotThreads = 32 * kDotWarps;
inline constexpr int32_t kDotRows = 16;   // of a tile: the m of the tensor core
inline constexpr int32_t kDotStages = 4;  // of 64 inputs, on their way in every warp
inline constexpr int32_t kDotStep =
    64 * kDotWarps;  // inputs that the warps of a block take at a time
inline constexpr int32_t kMostDotBlocks = 4096;
inline constexpr int32_t kPassColumns = 8 * kDotThreads;  // of down: 16 bytes of a row and thread
inline constexpr int32_t kMostPassParts = 4;

struct MlpParams {
  const uint16_t *x, *gate, *up, *down;
  int64_t x_stride;
  const float* threshold;
  Activation activation;
  int32_t m, k, n, d, blocks;
  int32_t steps;  // of kDotStep inputs
  uint32_t x_pitch_bytes, gate_x_at, up_x_at;
  bool x_aligned;  // rows of x start on multiples of 16 bytes
  // Of the gate's blocks, each from the first of its neurons on: how many count, which, and their
  // activations [n, kCudaTokens], 0 for tokens for which they do not count.
  int32_t *counts, *ids;
  float* activations;
  // Of all that count, in order: how many, which, and factors [ceil(n / 2), kCudaTokens, 2, 2] of
  // 16-bit floats: of a pair, rounded, then what the rounding left.
  int32_t *total, *listed;
  uint16_t* factors;
  // In one pass: each block's sums [blocks, d], and where they are added up.
  float* partial;
  uint16_t* y;
};

// Shared memory of the kernels that take dot products: sums of the warps [2, kDotWarps, 16, 8], a
// list of the up kernel (starts of the gate's blocks, then id and place of each row), then x.
inline constexpr uint32_t kDotSumsAt = 0;
inline constexpr uint32_t kDotListAt = 2 * kDotWarps * kDotRows * kCudaTokens * 4;
constexpr int32_t dot_list_bytes(int32_t n, int32_t blocks) {
  const int32_t rows = n / blocks + 1;
  return (4 * (blocks + 2) + 8 * rows + 15) / 16 * 16;
}
constexpr int32_t dot_x_pitch(int32_t k) {  // rows of x meet in no bank
  return 2 * kDotStep * static_cast<int32_t>(ceil_div(k, kDotStep)) + 64;
}

// Tokens of a launch: as many as shared memory holds.
inline int32_t mlp_tokens(int64_t m, int32_t list_bytes, int32_t pitch, const CudaDevice& device) {
  const int64_t room = device.shared_per_block - static_cast<int64_t>(kDotListAt) - list_bytes;
  return static_cast<int32_t>(std::min<int64_t>({m, kCudaTokens, room / pitch}));
}

struct MlpPlan {
  int32_t blocks = 0, splits = 0, tokens = 0;  // of the dot products, of down, of a launch
  bool pass = false;                           // one token in one pass
  int32_t gate_shared = 0, up_shared = 0, down_shared = 0;
  int64_t workspace_bytes = 0;
};

// Checks the arguments too.
Status plan_mlp(const SparseMlpArgs& args, const CudaDevice& device, MlpPlan* plan);

// Params of tokens [first, first + plan.tokens) of a call, and those of its last kernel.
MlpParams mlp_params(const SparseMlpArgs& args, const MlpPlan& plan, int64_t first,
                     void* workspace);
RowSumParams mlp_down_params(const SparseMlpArgs& args, const MlpPlan& plan, int64_t first,
                             void* workspace);

}  // namespace tamis
