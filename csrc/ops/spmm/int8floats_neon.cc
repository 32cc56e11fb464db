// csr and block of i8 on NEON.
#include "base/simd/neon.h"
#include "ops/spmm/floats-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {

TAMIS_FLOATS_KERNEL(f32, float, neon)
TAMIS_FLOATS_KERNEL(f16, F16, neon)
TAMIS_FLOATS_KERNEL(bf16, BF16, neon)

}  // namespace tamis
