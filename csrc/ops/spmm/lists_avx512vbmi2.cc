// bitmap, nm and csr8 for 3 to 32 tokens with VBMI2: zeros left out by lists of columns, products
// in f32.
#include "ops/spmm/lists_avx512vbmi2.h"

#include "ops/spmm/kernels.h"

namespace tamis {

TAMIS_LISTS_FORMS(f32, avx512vbmi2, float)
TAMIS_LISTS_FORMS(f16, avx512vbmi2, F16)
TAMIS_LISTS_FORMS(bf16, avx512vbmi2, BF16)
TAMIS_OCTETLISTS_FORM(f32, avx512vbmi2, float)
TAMIS_OCTETLISTS_FORM(f16, avx512vbmi2, F16)

TAMIS_LISTS_KERNELS(f32, f32, avx512vbmi2, float, float)
TAMIS_LISTS_KERNELS(f16, f32, avx512vbmi2, F16, float)
TAMIS_LISTS_KERNELS(f16, f16, avx512vbmi2, F16, F16)
TAMIS_LISTS_KERNELS(bf16, f32, avx512vbmi2, BF16, float)
TAMIS_LISTS_KERNELS(bf16, bf16, avx512vbmi2, BF16, BF16)
// Pairs of bf16 are as fast with eight tokens, at any density.
TAMIS_LISTS_FORMATS(f32, f32, avx512vbmi2, octetlists, float, float, 8)
TAMIS_LISTS_FORMATS(f16, f32, avx512vbmi2, octetlists, F16, float, 8)
TAMIS_LISTS_FORMATS(f16, f16, avx512vbmi2, octetlists, F16, F16, 8)
TAMIS_LISTS_FORMATS(bf16, f32, avx512vbmi2, octetlists, BF16, float, 8)

}  // namespace tamis
