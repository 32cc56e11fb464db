// The activation behind a product, NEON.
#include "base/simd/lanes_neon.h"
#include "ops/spmm/activate-inl.h"
#include "ops/spmm/activate.h"

namespace tamis {

void activate_neon(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  activate_any(a, row_begin, row_end);
}

}  // namespace tamis
