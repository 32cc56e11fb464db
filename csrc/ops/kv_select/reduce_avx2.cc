// Reductions and choices over scores on avx2.
#include "base/simd/lanes_avx2.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/reduce-inl.h"

namespace tamis {

TAMIS_KV_REDUCE_KERNELS(avx2)

}  // namespace tamis
