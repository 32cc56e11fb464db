// Portable spmm over CSR.
#include "ops/spmm/kernels.h"
#include "ops/spmm/scalar-inl.h"

namespace tamis {
namespace {

struct CsrRows {
  template <class Visit>
  static void visit(const MatrixView& w, int64_t row, const Visit& visit) {
    for (int64_t i = w.row_offsets[row]; i < w.row_offsets[row + 1]; ++i) {
      visit(i, w.col_indices[i]);
    }
  }
};

}  // namespace

TAMIS_SCALAR_KERNELS(csr, CsrRows)

}  // namespace tamis
