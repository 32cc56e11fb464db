// Attention over dense keys and values on neon.
#include "base/simd/lanes_neon.h"
#include "ops/sparse_attention/dense-inl.h"
#include "ops/sparse_attention/kernels.h"

namespace tamis {

TAMIS_DENSE_ATTENTION(f32, FloatUnit<float>, f32, neon)
TAMIS_DENSE_ATTENTION(f16, FloatUnit<F16>, f32, neon)
TAMIS_DENSE_ATTENTION(bf16, FloatUnit<BF16>, f32, neon)

}  // namespace tamis
