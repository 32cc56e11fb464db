// Gradients of spmm on avx2.
#include "base/simd/lanes_avx2.h"
#include "ops/spmm_grad/grad-inl.h"
#include "ops/spmm_grad/kernels.h"

namespace tamis {

void spmm_t_f32_avx2(const int32_t* columns, const float* values, int64_t count, const float* dy,
                     float* dx) {
  spmm_t_row(columns, values, count, dy, dx);
}
void sddmm_f32_avx2(const int32_t* columns, int64_t count, const float* dy, const float* x,
                    float* sums) {
  sddmm_row(columns, count, dy, x, sums);
}

}  // namespace tamis
