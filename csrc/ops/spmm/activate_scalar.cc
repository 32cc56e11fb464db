// The activation behind a product, portable.
#include "base/simd/lanes_scalar.h"
#include "ops/spmm/activate-inl.h"
#include "ops/spmm/activate.h"

namespace tamis {

void activate_scalar(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  activate_any(a, row_begin, row_end);
}

}  // namespace tamis
