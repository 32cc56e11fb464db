// The activation behind a product, AVX2.
#include "base/simd/lanes_avx2.h"
#include "ops/spmm/activate-inl.h"
#include "ops/spmm/activate.h"

namespace tamis {

void activate_avx2(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  activate_any(a, row_begin, row_end);
}

}  // namespace tamis
