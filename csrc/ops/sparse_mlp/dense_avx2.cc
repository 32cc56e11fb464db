// Gated MLPs of which some neurons count, on avx2.
#include "base/simd/lanes_avx2.h"
#include "ops/sparse_mlp/kernels.h"
#include "ops/sparse_mlp/mlp-inl.h"

namespace tamis {

void sparse_mlp_f32_avx2(const MlpPart& p) {
  mlp_part<float>(p);
}
void sparse_mlp_f16_avx2(const MlpPart& p) {
  mlp_part<F16>(p);
}
void sparse_mlp_bf16_avx2(const MlpPart& p) {
  mlp_part<BF16>(p);
}

}  // namespace tamis
