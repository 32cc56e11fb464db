// bitmap and nm for a few tokens on AVX-512 without VBMI2, 16 columns per step.
#include "base/simd/avx512.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/strips-inl.h"

namespace tamis {

using F32ByF32 = StripF32<float, float>;
using Bf16ByBf16 = StripF32<BF16, BF16>;
using Bf16ByF32 = StripF32<BF16, float>;
using F16ByF16 = StripF32<F16, F16>;
using F16ByF32 = StripF32<F16, float>;

TAMIS_STRIPS_FORM(f32, avx512, F32ByF32)
TAMIS_STRIPS_FORM(f16, avx512, F16ByF16)
TAMIS_STRIPS_FORM(bf16, avx512, Bf16ByBf16)

TAMIS_STRIPS_KERNELS(f32, f32, avx512, F32ByF32)
TAMIS_STRIPS_KERNELS(bf16, bf16, avx512, Bf16ByBf16)
TAMIS_STRIPS_KERNELS(bf16, f32, avx512, Bf16ByF32)
TAMIS_STRIPS_KERNELS(f16, f16, avx512, F16ByF16)
TAMIS_STRIPS_KERNELS(f16, f32, avx512, F16ByF32)

}  // namespace tamis
