// csr and block of i8 on AVX2.
#include "base/simd/avx2.h"
#include "ops/spmm/floats-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {

TAMIS_FLOATS_KERNEL(f32, float, avx2)
TAMIS_FLOATS_KERNEL(f16, F16, avx2)
TAMIS_FLOATS_KERNEL(bf16, BF16, avx2)

}  // namespace tamis
