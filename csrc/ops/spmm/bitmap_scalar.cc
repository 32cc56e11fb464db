// Portable spmm over mask words: bitmap and nm differ only in where a row's values begin.
#include <bit>

#include "ops/spmm/kernels.h"
#include "ops/spmm/scalar-inl.h"

namespace tamis {
namespace {

template <class Visit>
void visit_words(const MatrixView& w, int64_t row, int64_t value, const Visit& visit) {
  const int64_t words = mask_words(w.cols);
  for (int64_t i = 0; i < words; ++i) {
    for (uint64_t bits = w.mask[row * words + i]; bits; bits &= bits - 1) {
      visit(value++, i * 64 + std::countr_zero(bits));
    }
  }
}

struct BitmapRows {
  template <class Visit>
  static void visit(const MatrixView& w, int64_t row, const Visit& visit) {
    visit_words(w, row, w.row_offsets[row], visit);
  }
};

struct NmRows {
  template <class Visit>
  static void visit(const MatrixView& w, int64_t row, const Visit& visit) {
    visit_words(w, row, row * (w.cols / w.of * w.keep), visit);
  }
};

}  // namespace

TAMIS_SCALAR_KERNELS(bitmap, BitmapRows)
TAMIS_SCALAR_KERNELS(nm, NmRows)

}  // namespace tamis
