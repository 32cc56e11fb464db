// What the kernels of kv_rebuild get, and the memory they and the host agree on.
#pragma once

#include <cstdint>

#include "ops/kv_rebuild/kv_rebuild_cuda.h"

namespace tamis {

inline constexpr int32_t kRebuildThreads = 128;
inline constexpr int32_t kRebuildTokens = 64;  // of a block
inline constexpr int32_t kRebuildStep = 64;    // of the rank, at a time
inline constexpr int32_t kRebuildStages = 2;

struct RebuildParams {
  const uint8_t *coordinates, *basis, *values;
  int64_t coordinate_batch, coordinate_token, value_batch, value_head, value_token;  // bytes
  int32_t rank, pairs;
  const float* turns;
  const int32_t* index;
  int32_t listed, tokens, kv_heads;
  uint8_t *out_keys, *out_values;
};

// Shared memory of a block: two stages of coordinates and of the basis; then the products in f32.
constexpr int32_t rebuild_shared(int32_t d) {
  const int32_t stages = kRebuildStages * 2 * kRebuildStep * (kRebuildTokens + d);
  const int32_t products = 4 * kRebuildTokens * (d + 4);
  return stages > products ? stages : products;
}

RebuildParams rebuild_params(const KvRebuildArgs& args);

}  // namespace tamis
