// bitmap and nm for many tokens on NEON with BF16 and I8MM: bfmmla, which rounds as bfdot does
// (bitmap_neon_bf16.cc), and smmla on codes of x.
#include "ops/spmm/kernels.h"
#include "ops/spmm/pairs_neon.h"

namespace tamis {

TAMIS_PAIRS_FORM(pairs, bf16, BF16, neon_bf16, Bf16Matrix)
TAMIS_PAIRS_KERNEL(pairs, bf16, bf16, BF16, neon_bf16, Bf16Matrix)

TAMIS_PAIRS_FORM(codepairs, f32, float, neon_bf16, I8Matrix)
TAMIS_PAIRS_FORM(codepairs, f16, F16, neon_bf16, I8Matrix)
TAMIS_PAIRS_FORM(codepairs, bf16, BF16, neon_bf16, I8Matrix)
TAMIS_PAIRS_KERNEL(codepairs, i8, f32, float, neon_bf16, I8Matrix)
TAMIS_PAIRS_KERNEL(codepairs, i8, f16, F16, neon_bf16, I8Matrix)
TAMIS_PAIRS_KERNEL(codepairs, i8, bf16, BF16, neon_bf16, I8Matrix)

}  // namespace tamis
