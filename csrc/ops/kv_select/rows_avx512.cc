// Scores of float rows on avx512.
#include "base/simd/lanes_avx512.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/rows-inl.h"

namespace tamis {

TAMIS_SCORE_ROWS(bf16, BF16, avx512)
TAMIS_SCORE_ROWS(f16, F16, avx512)
TAMIS_SCORE_ROWS(f32, float, avx512)

}  // namespace tamis
