// Attention over keys of low rank on scalar.
#include "base/simd/lanes_scalar.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/lowrank-inl.h"

namespace tamis {

TAMIS_LOWRANK_ATTENTION(f32, float, scalar)
TAMIS_LOWRANK_ATTENTION(f16, F16, scalar)
TAMIS_LOWRANK_ATTENTION(bf16, BF16, scalar)

}  // namespace tamis
