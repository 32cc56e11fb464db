// Portable spmm over dense r x c blocks.
#include "ops/spmm/kernels.h"
#include "ops/spmm/scalar-inl.h"

namespace tamis {
namespace {

struct BlockRows {
  template <class Visit>
  static void visit(const MatrixView& w, int64_t row, const Visit& visit) {
    const int64_t r = w.block_rows, c = w.block_cols;
    for (int64_t b = w.row_offsets[row / r]; b < w.row_offsets[row / r + 1]; ++b) {
      const int64_t value = b * r * c + row % r * c;
      for (int64_t j = 0; j < c; ++j) visit(value + j, w.col_indices[b] * c + j);
    }
  }
};

}  // namespace

TAMIS_SCALAR_KERNELS(block, BlockRows)

}  // namespace tamis
