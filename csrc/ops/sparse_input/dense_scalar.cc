// Sums of weighted rows on scalar.
#include "base/simd/lanes_scalar.h"
#include "ops/sparse_input/kernels.h"
#include "ops/sparse_input/row_sum-inl.h"

namespace tamis {

void sparse_input_f32_scalar(const RowSum& a) {
  row_sum<float>(a);
}
void sparse_input_f16_scalar(const RowSum& a) {
  row_sum<F16>(a);
}
void sparse_input_bf16_scalar(const RowSum& a) {
  row_sum<BF16>(a);
}

}  // namespace tamis
