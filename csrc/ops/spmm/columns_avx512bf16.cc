// bitmap and nm of bf16 for about 16 tokens with VBMI2 and BF16: pairs of columns by vdpbf16ps.
#include "base/simd/avx512.h"
#include "ops/spmm/beside_avx512bf16.h"
#include "ops/spmm/columns-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {

TAMIS_COLUMNS_FORM(bf16, avx512bf16, Bf16Pair)

void spmm_bitmap_bf16_bf16_avx512bf16_columns(const SpmmArgs& a, int64_t begin, int64_t end) {
  spmm_beside<16>(a, begin, end);
}
void spmm_nm_bf16_bf16_avx512bf16_columns(const SpmmArgs& a, int64_t begin, int64_t end) {
  spmm_beside<16>(a, begin, end);
}

}  // namespace tamis
