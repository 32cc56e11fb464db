// CSR on AVX2.
#include "base/simd/avx2.h"
#include "ops/spmm/csr-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {

TAMIS_CSR_KERNEL(f32, float, f32, float, avx2)
TAMIS_CSR_KERNEL(bf16, BF16, bf16, BF16, avx2)
TAMIS_CSR_KERNEL(bf16, BF16, f32, float, avx2)

}  // namespace tamis
