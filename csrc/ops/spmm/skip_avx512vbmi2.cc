// bitmap and nm for many tokens with VBMI2, zeros left out, products in f32.
#include "base/simd/avx512.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/skip-inl.h"

namespace tamis {

using F32ByF32 = F32Unit<float, float>;
using Bf16ByF32 = F32Unit<BF16, float>;
using Bf16ByBf16 = F32Unit<BF16, BF16>;
using F16ByF16 = F32Unit<F16, F16>;
using F16ByF32 = F32Unit<F16, float>;

TAMIS_SKIP_FORM(f32, avx512vbmi2, F32ByF32)
TAMIS_SKIP_FORM(f16, avx512vbmi2, F16ByF16)
TAMIS_SKIP_FORM(bf16, avx512vbmi2, Bf16ByBf16)

TAMIS_SKIP_KERNELS(f32, f32, avx512vbmi2, F32ByF32)
TAMIS_SKIP_KERNELS(bf16, f32, avx512vbmi2, Bf16ByF32)
TAMIS_SKIP_KERNELS(bf16, bf16, avx512vbmi2, Bf16ByBf16)
TAMIS_SKIP_KERNELS(f16, f16, avx512vbmi2, F16ByF16)
TAMIS_SKIP_KERNELS(f16, f32, avx512vbmi2, F16ByF32)

}  // namespace tamis
