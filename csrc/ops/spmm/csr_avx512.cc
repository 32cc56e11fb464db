// CSR on AVX-512.
#include "base/simd/avx512.h"
#include "ops/spmm/csr-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {

TAMIS_CSR_KERNEL(f32, float, f32, float, avx512)
TAMIS_CSR_KERNEL(bf16, BF16, bf16, BF16, avx512)
TAMIS_CSR_KERNEL(bf16, BF16, f32, float, avx512)

}  // namespace tamis
