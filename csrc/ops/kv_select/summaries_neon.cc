// Summaries of pages on neon.
#include "base/simd/lanes_neon.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/summaries-inl.h"

namespace tamis {

TAMIS_SUMMARIES(neon)

}  // namespace tamis
