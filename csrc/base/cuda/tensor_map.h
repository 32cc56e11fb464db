// Matrices in device memory as copies of boxes see them; host side, and what kernels get of it.
#pragma once

#include <cstdint>

namespace tamis {

// Opaque to kernels, which must get it in their parameters (TAMIS_GRID_CONSTANT).
struct alignas(64) TensorMap {
  uint64_t words[16] = {};
};

// A matrix of 16-bit values in boxes of kBoxCols columns, 128 bytes, and `box_rows` (up to 256)
// rows. In shared memory, aligned to 1024 bytes, the 16 bytes j of row r lie at j ^ r % 8; beyond
// the matrix are zeros.
struct MatrixBoxes {
  const void* data = nullptr;  // at a multiple of 16 bytes
  int64_t rows = 0, cols = 0;
  int64_t stride = 0;  // between rows, in elements, a multiple of 8
  int32_t box_rows = 0;
};

inline constexpr int32_t kBoxCols = 64;

// Rows of `cols` 16-bit values of heads of batches, [batch, head, row], in boxes as MatrixBoxes' of
// one head: strides in elements, multiples of 8.
struct HeadBoxes {
  const void* data = nullptr;  // at a multiple of 16 bytes
  int64_t batches = 0, heads = 0, rows = 0, cols = 0;
  int64_t batch_stride = 0, head_stride = 0, stride = 0;
  int32_t box_rows = 0;
};

// Records [rows, cols] of as many bytes, a multiple of 16 up to 2048, in boxes of one column. In
// shared memory, aligned to 128 bytes, they lie one after another; beyond the last row are zeros.
struct RecordBoxes {
  const void* data = nullptr;  // at a multiple of 16 bytes
  int64_t rows = 0, cols = 0;
  int32_t record_bytes = 0, box_rows = 0;
};

}  // namespace tamis
