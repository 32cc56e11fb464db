// Scores of float rows on scalar.
#include "base/simd/lanes_scalar.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/rows-inl.h"

namespace tamis {

TAMIS_SCORE_ROWS(bf16, BF16, scalar)
TAMIS_SCORE_ROWS(f16, F16, scalar)
TAMIS_SCORE_ROWS(f32, float, scalar)

}  // namespace tamis
