// kv_page records on avx2.
#include "base/simd/avx2.h"
#include "ops/kv_quantize/kernels.h"
#include "ops/kv_quantize/kv_page-inl.h"

namespace tamis {

TAMIS_KV_QUANTIZE_KERNELS(avx2)

}  // namespace tamis
