// bitmap and nm for about 16 tokens on hosts with VBMI2 and BF16, whose next weights are expanded
// beside products: pairs of columns of bf16 by vdpbf16ps, and f32 (there because hosts without
// BF16 have other pipes, and `columns` of their own).
#include "base/simd/avx512.h"
#include "ops/spmm/beside-inl.h"
#include "ops/spmm/bf16_pair.h"
#include "ops/spmm/columns-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {

TAMIS_COLUMNS_FORM(bf16, avx512bf16, Bf16Pair)
TAMIS_COLUMNS_FORM(f32, avx512bf16, BesideF32)

TAMIS_BESIDE_KERNELS(bf16, bf16, avx512bf16, columns, BesidePair, 16)
TAMIS_BESIDE_KERNELS(f32, f32, avx512bf16, columns, BesideF32, 16)

}  // namespace tamis
