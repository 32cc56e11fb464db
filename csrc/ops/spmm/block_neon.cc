// Blocks on NEON.
#include "base/simd/neon.h"
#include "ops/spmm/block-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {

TAMIS_BLOCK_KERNEL(f32, float, f32, float, neon)
TAMIS_BLOCK_KERNEL(bf16, BF16, bf16, BF16, neon)

}  // namespace tamis
