// Gated MLPs of which some neurons count, on scalar.
#include "base/simd/lanes_scalar.h"
#include "ops/sparse_mlp/kernels.h"
#include "ops/sparse_mlp/mlp-inl.h"

namespace tamis {

void sparse_mlp_f32_scalar(const MlpPart& p) {
  mlp_part<float>(p);
}
void sparse_mlp_f16_scalar(const MlpPart& p) {
  mlp_part<F16>(p);
}
void sparse_mlp_bf16_scalar(const MlpPart& p) {
  mlp_part<BF16>(p);
}

}  // namespace tamis
