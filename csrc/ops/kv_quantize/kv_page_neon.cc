// kv_page records on neon.
#include "base/simd/neon.h"
#include "ops/kv_quantize/kernels.h"
#include "ops/kv_quantize/kv_page-inl.h"

namespace tamis {

TAMIS_KV_QUANTIZE_KERNELS(neon)

}  // namespace tamis
