// bitmap and nm on AVX2: 8 columns per step, expanded by table.
#include "ops/spmm/bitmap_avx2.h"

#include "ops/spmm/kernels.h"

namespace tamis {

using F32ByF32 = ExpandAt<float, float>;
using Bf16ByBf16 = ExpandAt<BF16, BF16>;
using Bf16ByF32 = ExpandAt<BF16, float>;
using F16ByF16 = ExpandAt<F16, F16>;
using F16ByF32 = ExpandAt<F16, float>;

TAMIS_MASKED_KERNEL(f32, f32, avx2, F32ByF32)
TAMIS_MASKED_KERNEL(bf16, bf16, avx2, Bf16ByBf16)
TAMIS_MASKED_KERNEL(bf16, f32, avx2, Bf16ByF32)
TAMIS_MASKED_KERNEL(f16, f16, avx2, F16ByF16)
TAMIS_MASKED_KERNEL(f16, f32, avx2, F16ByF32)

}  // namespace tamis
