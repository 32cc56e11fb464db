// What the passes of kv_estimate get, and the memory they and the host agree on.
#pragma once

#include <cstdint>

#include "ops/kv_select/kv_select_cuda.h"

namespace tamis {

inline constexpr int32_t kEstimateUnits = 1024;   // labels that a block takes at a time
inline constexpr int32_t kEstimateRowUnits = 32;  // rows or bounds
inline constexpr int64_t kEstimateAsked = 32768;  // bytes of them that a block asks for early

inline constexpr int64_t kProductChannels = 32;  // that lanes of a product load at a time

struct EstimateParams {
  KvEstimateArgs args;
  int64_t label_scale, label_min, label_bytes;
  int32_t blocks;         // over units
  int32_t span;           // units of a block, whole records
  int32_t width;          // floats of a row of q as the kernel reads it
  bool weighted;          // in two passes
  bool by_row;            // out: [heads, rows, units]
  bool products;          // rows or bounds on tensor cores
  float* stats;           // [heads, rows, blocks, 2]
  int32_t shared_at = 0;  // where q lies in shared memory
};

EstimateParams estimate_params(const KvEstimateArgs& args, void* workspace,
                               const CudaDevice& device);

// Bytes of shared memory: q as read (products need no more), two words a row, two floats a warp and
// row.
constexpr int32_t estimate_shared(int32_t rows, int32_t width) {
  return 4 * (rows * width + 2 * rows + 2 * rows * (kEstimateThreads / 32));
}

}  // namespace tamis
