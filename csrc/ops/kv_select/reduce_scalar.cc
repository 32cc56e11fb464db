// Reductions and choices over scores on scalar.
#include "base/simd/lanes_scalar.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/reduce-inl.h"

namespace tamis {

TAMIS_KV_REDUCE_KERNELS(scalar)

}  // namespace tamis
