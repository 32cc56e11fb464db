// bitmap and nm of bf16 for about 16 tokens with VBMI2 and BF16: pairs of columns by vdpbf16ps.
#include "base/simd/avx512.h"
#include "ops/spmm/bf16_pair.h"
#include "ops/spmm/columns-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {

TAMIS_COLUMNS_FORM(bf16, avx512bf16, Bf16Pair)
TAMIS_COLUMNS_KERNELS(bf16, bf16, avx512bf16, Bf16Pair)

}  // namespace tamis
