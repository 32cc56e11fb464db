// bitmap, nm and csr8 for few tokens on AVX2: zeros left out by lists of columns.
#include "ops/spmm/lists_avx2.h"

#include "ops/spmm/kernels.h"

namespace tamis {

TAMIS_LISTS_FORMS(f32, float)
TAMIS_LISTS_FORMS(f16, F16)
TAMIS_LISTS_FORMS(bf16, BF16)

TAMIS_LISTS_KERNELS(f32, f32, float, float)
TAMIS_LISTS_KERNELS(f16, f32, F16, float)
TAMIS_LISTS_KERNELS(f16, f16, F16, F16)
TAMIS_LISTS_KERNELS(bf16, f32, BF16, float)
TAMIS_LISTS_KERNELS(bf16, bf16, BF16, BF16)

}  // namespace tamis
