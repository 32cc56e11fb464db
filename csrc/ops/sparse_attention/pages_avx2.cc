// Attention over kv_page records on avx2.
#include "base/simd/lanes_avx2.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/pages-inl.h"

namespace tamis {

TAMIS_PAGE_ATTENTION(FloatCodes, avx2)

}  // namespace tamis
