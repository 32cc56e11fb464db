// Summaries of pages on scalar.
#include "base/simd/lanes_scalar.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/summaries-inl.h"

namespace tamis {

TAMIS_SUMMARIES(scalar)

}  // namespace tamis
