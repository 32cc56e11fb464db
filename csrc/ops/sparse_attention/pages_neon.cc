// Attention over kv_page records on neon.
#include "base/simd/lanes_neon.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/pages-inl.h"

namespace tamis {

TAMIS_PAGE_ATTENTION(FloatCodes, neon)

}  // namespace tamis
