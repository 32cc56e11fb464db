// Reductions and choices over scores on avx512.
#include "base/simd/lanes_avx512.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/reduce-inl.h"

namespace tamis {

TAMIS_KV_REDUCE_KERNELS(avx512)

}  // namespace tamis
