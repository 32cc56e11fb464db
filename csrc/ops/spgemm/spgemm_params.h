// What the kernels of spgemm get, and the memory they and the host agree on.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/cuda/device.h"
#include "ops/spgemm/spgemm_cuda.h"

namespace tamis {

inline constexpr int32_t kSpgemmThreads = 256;
inline constexpr int32_t kSpgemmWarps = kSpgemmThreads / 32;
// Most columns that a warp's and a block's table take: half of its places, so that probes are few.
inline constexpr int32_t kWarpTable = 512, kBlockTable = 8192;
inline constexpr int32_t kWarpColumns = kWarpTable / 2, kBlockColumns = kBlockTable / 2;
inline constexpr uint32_t kTableAt = 16;  // after a counter
inline constexpr uint32_t kWarpTableBytes = kTableAt + 8 * kWarpTable;
inline constexpr int32_t kSpgemmWarpShared = kSpgemmWarps * static_cast<int32_t>(kWarpTableBytes);
inline constexpr int32_t kSpgemmBlockShared = static_cast<int32_t>(kTableAt) + 8 * kBlockTable;
// Wider rows add up in global memory, 16 columns a thread at a time.
inline constexpr int32_t kDenseColumns = 16 * kSpgemmThreads;
inline constexpr int32_t kSpgemmDenseShared = 16 + 4 * kSpgemmWarps;
inline constexpr int64_t kDenseBytes = int64_t{64} << 20;  // of all blocks, if one needs no more

struct SpgemmParams {
  const int64_t *a_offsets, *b_offsets;
  const int32_t *a_columns, *b_columns;
  const float *a_values, *b_values;
  int32_t rows, columns;
  uint32_t* bounds;   // [rows]: at most as many values
  uint32_t* numbers;  // [2]: rows for blocks, and wider ones
  int32_t* lists;     // [2, rows]
  uint8_t* dense;     // [dense_blocks, dense_bytes]
  int64_t dense_bytes;
  int32_t dense_blocks;
  // Of the first call, and of the second.
  int64_t* counts;
  const int64_t* row_offsets;
  int32_t* col_indices;
  float* values;
};

// Sums [columns] f32, then a byte a column that says whether it has one; whole rounds of a block.
constexpr int64_t dense_columns(int64_t columns) {
  return ceil_div(columns, kDenseColumns) * kDenseColumns;
}
constexpr int64_t dense_bytes(int64_t columns) {
  return 5 * dense_columns(columns);
}
inline int32_t dense_blocks(int64_t columns, const CudaDevice& device) {
  if (columns <= kBlockColumns) return 0;
  return static_cast<int32_t>(
      std::clamp<int64_t>(kDenseBytes / dense_bytes(columns), 1, 2 * device.sms));
}

// Params of a call that was checked; its outputs are left out.
SpgemmParams spgemm_params(const SpgemmArgs& args, void* workspace, const CudaDevice& device);

}  // namespace tamis
