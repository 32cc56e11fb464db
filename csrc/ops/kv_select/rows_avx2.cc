// Scores of float rows on avx2.
#include "base/simd/lanes_avx2.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/rows-inl.h"

namespace tamis {

TAMIS_SCORE_ROWS(bf16, BF16, avx2)
TAMIS_SCORE_ROWS(f16, F16, avx2)
TAMIS_SCORE_ROWS(f32, float, avx2)

}  // namespace tamis
