// kv_page records on scalar.
#include "base/simd/lanes_scalar.h"
#include "ops/kv_quantize/kernels.h"
#include "ops/kv_quantize/kv_page-inl.h"

namespace tamis {

TAMIS_KV_QUANTIZE_KERNELS(scalar)

}  // namespace tamis
