// Reductions and choices over scores on neon.
#include "base/simd/lanes_neon.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/reduce-inl.h"

namespace tamis {

TAMIS_KV_REDUCE_KERNELS(neon)

}  // namespace tamis
