// Gated MLPs of which some neurons count, on neon.
#include "base/simd/lanes_neon.h"
#include "ops/sparse_mlp/kernels.h"
#include "ops/sparse_mlp/mlp-inl.h"

namespace tamis {

void sparse_mlp_f32_neon(const MlpPart& p) {
  mlp_part<float>(p);
}
void sparse_mlp_f16_neon(const MlpPart& p) {
  mlp_part<F16>(p);
}
void sparse_mlp_bf16_neon(const MlpPart& p) {
  mlp_part<BF16>(p);
}

}  // namespace tamis
