// The activation behind a product, AVX-512.
#include "base/simd/lanes_avx512.h"
#include "ops/spmm/activate-inl.h"
#include "ops/spmm/activate.h"

namespace tamis {

void activate_avx512(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  activate_any(a, row_begin, row_end);
}

}  // namespace tamis
