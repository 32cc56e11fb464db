// Portable spmm over csr8.
#include "ops/spmm/kernels.h"
#include "ops/spmm/scalar-inl.h"

namespace tamis {
namespace {

struct Csr8Rows {
  template <class Visit>
  static void visit(const MatrixView& w, int64_t row, const Visit& visit) {
    const int64_t words = mask_words(w.cols);
    const uint8_t* columns = w.col_bytes + w.rows * words;
    int64_t i = w.row_offsets[row];
    for (int64_t word = 0; word < words; ++word) {
      const int64_t end = i + w.col_bytes[row * words + word];
      for (; i < end; ++i) visit(i, 64 * word + columns[i]);
    }
  }
};

}  // namespace

TAMIS_SCALAR_KERNELS(csr8, Csr8Rows)

}  // namespace tamis
