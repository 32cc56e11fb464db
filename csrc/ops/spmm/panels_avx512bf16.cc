// bitmap, nm and csr for many tokens with VBMI2 and BF16: pairs of columns by vdpbf16ps; then the
// same with pairs of zeros left out.
#include "base/simd/avx512.h"
#include "ops/spmm/bf16_pair.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/panels-inl.h"
#include "ops/spmm/skip-inl.h"

namespace tamis {

TAMIS_PANELS_FORM(bf16, avx512bf16, Bf16Pair)
TAMIS_PANELS_KERNELS(bf16, bf16, avx512bf16, Bf16Pair)
TAMIS_SKIP_FORM(bf16, avx512bf16, Bf16Pair)
TAMIS_SKIP_KERNELS(bf16, bf16, avx512bf16, Bf16Pair)

}  // namespace tamis
