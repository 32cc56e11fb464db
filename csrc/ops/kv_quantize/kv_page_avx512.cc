// kv_page records on avx512.
#include "base/simd/avx512.h"
#include "ops/kv_quantize/kernels.h"
#include "ops/kv_quantize/kv_page-inl.h"

namespace tamis {

TAMIS_KV_QUANTIZE_KERNELS(avx512)

}  // namespace tamis
