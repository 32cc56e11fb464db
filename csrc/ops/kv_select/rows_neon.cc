// Scores of float rows on neon.
#include "base/simd/lanes_neon.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/rows-inl.h"

namespace tamis {

TAMIS_SCORE_ROWS(bf16, BF16, neon)
TAMIS_SCORE_ROWS(f16, F16, neon)
TAMIS_SCORE_ROWS(f32, float, neon)

}  // namespace tamis
