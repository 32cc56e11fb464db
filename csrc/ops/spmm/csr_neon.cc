// CSR on NEON.
#include "base/simd/neon.h"
#include "ops/spmm/csr-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {

TAMIS_CSR_KERNEL(f32, float, f32, float, neon)
TAMIS_CSR_KERNEL(bf16, BF16, bf16, BF16, neon)
TAMIS_CSR_KERNEL(bf16, BF16, f32, float, neon)

}  // namespace tamis
