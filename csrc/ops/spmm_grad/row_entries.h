// Where the stored values of one row lie: the formats that spmm_grad takes, as columns and places.
#pragma once

#include <bit>
#include <cstdint>

#include "format/matrix.h"

namespace tamis {

struct RowEntries {
  const int32_t* columns;  // [count], ascending
  int64_t first, count;    // values [first, first + count)
};

// buffer: [cols], for formats that list no columns.
inline RowEntries row_entries(const MatrixView& w, int64_t row, int32_t* buffer) {
  const int64_t first = row_start(w, row), count = row_start(w, row + 1) - first;
  if (w.format == Format::csr) return {w.col_indices + first, first, count};
  const int64_t words = mask_words(w.cols);
  int32_t* to = buffer;
  for (int64_t i = 0; i < words; ++i) {
    for (uint64_t bits = w.mask[row * words + i]; bits != 0; bits &= bits - 1) {
      *to++ = static_cast<int32_t>(64 * i + std::countr_zero(bits));
    }
  }
  return {buffer, first, count};
}

}  // namespace tamis
