// Many tokens on NEON, zeros left out, products in f32.
#include "ops/spmm/skip_neon.h"

#include "ops/spmm/kernels.h"

namespace tamis {

TAMIS_SKIP_FORM(f32, float, neon)
TAMIS_SKIP_FORM(f16, F16, neon)
TAMIS_SKIP_FORM(bf16, BF16, neon)

TAMIS_SKIP_KERNELS(f32, float, f32, float, neon)
TAMIS_SKIP_KERNELS(f16, F16, f32, float, neon)
TAMIS_SKIP_KERNELS(f16, F16, f16, F16, neon)
TAMIS_SKIP_KERNELS(bf16, BF16, f32, float, neon)
TAMIS_SKIP_KERNELS(bf16, BF16, bf16, BF16, neon)
TAMIS_SKIP_KERNEL(block, f32, float, f32, float, neon)
TAMIS_SKIP_KERNEL(block, bf16, BF16, bf16, BF16, neon)

}  // namespace tamis
