// Tiles of rows on CUDA (row_tiles.cuh): what the host and the kernels agree on.
#pragma once

#include <cstdint>

namespace tamis {

inline constexpr int32_t kTileWarps = 4;
inline constexpr int32_t kTileThreads = 32 * kTileWarps;
inline constexpr int32_t kTileStream = 64;  // rows of a tile that passes by

// Bytes of a row in shared memory: a power of two, so that a step differs in bits of an address.
// split: elements are bf16 and the rest in bf16.
constexpr int64_t tile_row_bytes(int64_t dim, bool split) {
  int64_t bytes = 128;
  while (bytes < (split ? 4 : 2) * dim) bytes *= 2;
  return bytes;
}

}  // namespace tamis
