// Sums of weighted rows on avx2.
#include "base/simd/lanes_avx2.h"
#include "ops/sparse_input/kernels.h"
#include "ops/sparse_input/row_sum-inl.h"

namespace tamis {

void sparse_input_f32_avx2(const RowSum& a) {
  row_sum<float>(a);
}
void sparse_input_f16_avx2(const RowSum& a) {
  row_sum<F16>(a);
}
void sparse_input_bf16_avx2(const RowSum& a) {
  row_sum<BF16>(a);
}

}  // namespace tamis
