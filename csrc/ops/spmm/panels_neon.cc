// bitmap, nm and csr for many tokens on NEON, products in f32.
#include "base/simd/neon.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/panels-inl.h"

namespace tamis {

using F32ByF32 = F32Unit<float, float>;
using Bf16ByBf16 = F32Unit<BF16, BF16>;
using Bf16ByF32 = F32Unit<BF16, float>;
using F16ByF16 = F32Unit<F16, F16>;
using F16ByF32 = F32Unit<F16, float>;

TAMIS_PANELS_FORM(f32, neon, F32ByF32)
TAMIS_PANELS_FORM(bf16, neon, Bf16ByBf16)
TAMIS_PANELS_FORM(f16, neon, F16ByF16)

TAMIS_PANELS_KERNELS(f32, f32, neon, F32ByF32)
TAMIS_PANELS_KERNELS(bf16, bf16, neon, Bf16ByBf16)
TAMIS_PANELS_KERNELS(bf16, f32, neon, Bf16ByF32)
TAMIS_PANELS_KERNELS(f16, f16, neon, F16ByF16)
TAMIS_PANELS_KERNELS(f16, f32, neon, F16ByF32)

}  // namespace tamis
