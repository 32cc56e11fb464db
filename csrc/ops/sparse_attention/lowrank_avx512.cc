// Attention over keys of low rank on avx512.
#include "base/simd/lanes_avx512.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/lowrank-inl.h"

namespace tamis {

TAMIS_LOWRANK_ATTENTION(f32, float, avx512)
TAMIS_LOWRANK_ATTENTION(f16, F16, avx512)
TAMIS_LOWRANK_ATTENTION(bf16, BF16, avx512)

}  // namespace tamis
