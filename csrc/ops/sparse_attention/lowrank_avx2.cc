// Attention over keys of low rank on avx2.
#include "base/simd/lanes_avx2.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/lowrank-inl.h"

namespace tamis {

TAMIS_LOWRANK_ATTENTION(f32, float, avx2)
TAMIS_LOWRANK_ATTENTION(f16, F16, avx2)
TAMIS_LOWRANK_ATTENTION(bf16, BF16, avx2)

}  // namespace tamis
