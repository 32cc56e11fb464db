// Attention over keys of low rank on neon.
#include "base/simd/lanes_neon.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/lowrank-inl.h"

namespace tamis {

TAMIS_LOWRANK_ATTENTION(f32, float, neon)
TAMIS_LOWRANK_ATTENTION(f16, F16, neon)
TAMIS_LOWRANK_ATTENTION(bf16, BF16, neon)

}  // namespace tamis
