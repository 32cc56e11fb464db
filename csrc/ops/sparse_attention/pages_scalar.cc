// Attention over kv_page records on scalar.
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/lanes_scalar.h"
#include "ops/sparse_attention/pages-inl.h"

namespace tamis {

TAMIS_PAGE_ATTENTION(FloatCodes, scalar)

}  // namespace tamis
