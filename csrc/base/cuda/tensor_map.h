// A matrix of 16-bit values in device memory as copies of boxes see it; host side, and what kernels
// get of it.
#pragma once

#include <cstdint>

namespace tamis {

// Opaque to kernels, which must get it in their parameters (TAMIS_GRID_CONSTANT).
struct alignas(64) TensorMap {
  uint64_t words[16] = {};
};

// Boxes of kBoxCols columns, 128 bytes, and `box_rows` (up to 256) rows. In shared memory, aligned
// to 1024 bytes, the 16 bytes j of row r lie at j ^ r % 8; beyond the matrix are zeros.
struct MatrixBoxes {
  const void* data = nullptr;  // at a multiple of 16 bytes
  int64_t rows = 0, cols = 0;
  int64_t stride = 0;  // between rows, in elements, a multiple of 8
  int32_t box_rows = 0;
};

inline constexpr int32_t kBoxCols = 64;

}  // namespace tamis
