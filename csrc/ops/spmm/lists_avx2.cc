// csr8 for few tokens on AVX2: zeros left out by lists of columns.
#include "base/simd/avx2.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/lists256-inl.h"

namespace tamis {

TAMIS_LISTS_FORMS(f32, float)
TAMIS_LISTS_FORMS(f16, F16)
TAMIS_LISTS_FORMS(bf16, BF16)

TAMIS_LISTS_KERNELS(csr8, f32, f32, float, float)
TAMIS_LISTS_KERNELS(csr8, f16, f32, F16, float)
TAMIS_LISTS_KERNELS(csr8, f16, f16, F16, F16)
TAMIS_LISTS_KERNELS(csr8, bf16, f32, BF16, float)
TAMIS_LISTS_KERNELS(csr8, bf16, bf16, BF16, BF16)

}  // namespace tamis
