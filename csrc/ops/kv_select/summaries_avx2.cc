// Summaries of pages on avx2.
#include "base/simd/lanes_avx2.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/summaries-inl.h"

namespace tamis {

TAMIS_SUMMARIES(avx2)

}  // namespace tamis
