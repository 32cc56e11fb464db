// Attention over kv_page records on avx512.
#include "base/simd/lanes_avx512.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/pages-inl.h"

namespace tamis {

TAMIS_PAGE_ATTENTION(FloatCodes, avx512)

}  // namespace tamis
