// What the kernels that add up listed rows get, and the memory they and the host agree on.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/cuda/device.h"
#include "format/matrix.h"
#include "ops/sparse_input/sparse_input.h"

namespace tamis {

inline constexpr int32_t kCudaTokens = 8;  // the n of the tensor core: tokens of a launch
inline constexpr int32_t kRowSumWarps = 8;
inline constexpr int32_t kRowSumThreads = 32 * kRowSumWarps;
inline constexpr int32_t kRowSumColumns = 128;               // of a block: 256 bytes of a row
inline constexpr int32_t kRowSumPitch = kRowSumColumns + 2;  // floats; spreads stores over banks
inline constexpr int32_t kRowSumStep = 16;                   // rows that a warp adds at a time
inline constexpr int32_t kRowSumBlocks = 2;                  // of an SM
inline constexpr int32_t kMostRowSplits = 32;

struct RowSumParams {
  const uint8_t* w;  // [rows, columns] of 16-bit floats
  int32_t columns, splits, m;
  const uint16_t* bias;
  uint16_t* y;
  int64_t y_stride;
  uint32_t* tickets;  // [tiles]
  float* partial;     // [tiles, splits, m, kRowSumColumns]
};

// Blocks that share a tile of columns, so that the turns of the blocks over the SMs are nearly
// full. A further turn costs its blocks' beginnings and ends, some 3 us of the 25 that such a
// product takes.
inline int32_t row_splits(int64_t columns, int64_t rows, int32_t least, const CudaDevice& device) {
  const int64_t tiles = ceil_div(columns, kRowSumColumns);
  const int64_t slots = std::max<int64_t>(1, int64_t{kRowSumBlocks} * device.sms);
  const int64_t most = std::clamp<int64_t>(ceil_div(rows, 4 * kRowSumStep), 1, kMostRowSplits);
  int32_t best = least;
  double fullest = 0;
  for (int64_t s = least; s <= std::max<int64_t>(least, most); ++s) {
    const int64_t turns = ceil_div(tiles * s, slots);
    const double full =
        static_cast<double>(tiles * s) / static_cast<double>(turns * slots) - 0.12 * (turns - 1);
    if (full > fullest + 1e-9) {
      fullest = full;
      best = static_cast<int32_t>(s);
    }
  }
  return best;
}

constexpr int64_t row_sum_partials(int64_t columns, int64_t splits, int64_t m) {
  return splits == 1 ? 0 : ceil_div(columns, kRowSumColumns) * splits * m * kRowSumColumns;
}

// Bytes of shared memory in which the warps of a block add up.
constexpr int32_t row_sum_shared(int32_t m) {
  return 4 * kRowSumWarps * m * kRowSumPitch + 16;
}

}  // namespace tamis
