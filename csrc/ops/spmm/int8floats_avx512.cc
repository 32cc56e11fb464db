// csr and block of i8 on AVX-512.
#include "base/simd/avx512.h"
#include "ops/spmm/floats-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {

TAMIS_FLOATS_KERNEL(f32, float, avx512)
TAMIS_FLOATS_KERNEL(f16, F16, avx512)
TAMIS_FLOATS_KERNEL(bf16, BF16, avx512)

}  // namespace tamis
