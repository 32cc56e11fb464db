// Attention over kv_page records on scalar.
#include "base/simd/lanes_scalar.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/pages-inl.h"

namespace tamis {

TAMIS_PAGE_ATTENTION(FloatCodes, scalar)

}  // namespace tamis
