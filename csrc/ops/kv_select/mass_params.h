// What the passes of kv_mass get on CUDA, and the memory they and the host agree on.
#pragma once

#include <cstdint>

#include "ops/kv_select/kv_select_cuda.h"
#include "ops/kv_select/row_tiles.h"

namespace tamis {

inline constexpr int32_t kMassStages = 2;
inline constexpr int32_t kMassMergeThreads = 256;
inline constexpr int32_t kMassMostSplits = 64;

struct MassParams {
  const uint8_t *q, *keys;  // q: [heads, rows, d]
  DType q_dtype, key_dtype;
  int64_t key_batch, key_head, key_token;  // bytes
  int32_t kv_heads, heads;                 // heads: batch * kv_heads
  int32_t rows, queries, tokens, dim;      // rows: of a KV head, query heads times queries
  int32_t row_bytes;                       // in shared memory
  float factor, share;                     // scale * log2 e; 1 / query heads of a KV head
  const int32_t *positions, *begin;
  float* out;    // [heads, tokens]
  float* lse;    // [heads, rows], to the base 2; +inf where a row sees nothing
  float* parts;  // [splits, heads, rows, 2], largest and sum of each split of the tokens
  int32_t splits, split_tiles;  // tiles of tokens of a split
};

// Shared memory of a block that keeps `rows` rows: what their queries see, what streamed rows see
// and come to, the rows, two tiles of streamed ones.
constexpr int32_t mass_rows_at(int32_t rows) {
  return 4 * rows + 8 * kMassStages * kTileStream;
}
constexpr int32_t mass_shared(int32_t rows, int32_t row_bytes) {
  return mass_rows_at(rows) + (rows + kMassStages * kTileStream) * row_bytes;
}

MassParams mass_params(const KvMassArgs& args, void* workspace, const CudaDevice& device);

}  // namespace tamis
