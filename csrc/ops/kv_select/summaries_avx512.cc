// Summaries of pages on avx512.
#include "base/simd/lanes_avx512.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/summaries-inl.h"

namespace tamis {

TAMIS_SUMMARIES(avx512)

}  // namespace tamis
