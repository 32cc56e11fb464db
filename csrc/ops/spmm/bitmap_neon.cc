// bitmap and nm on NEON: 8 columns per step, expanded by tbl.
#include "ops/spmm/bitmap_neon.h"

#include "ops/spmm/kernels.h"

namespace tamis {

using F32ByF32 = F32Columns<float>;
using Bf16ByBf16 = HalfColumns<BF16, BF16>;
using Bf16ByF32 = HalfColumns<BF16, float>;
using F16ByF16 = HalfColumns<F16, F16>;
using F16ByF32 = HalfColumns<F16, float>;

TAMIS_MASKED_KERNEL(f32, f32, neon, F32ByF32)
TAMIS_MASKED_KERNEL(bf16, bf16, neon, Bf16ByBf16)
TAMIS_MASKED_KERNEL(bf16, f32, neon, Bf16ByF32)
TAMIS_MASKED_KERNEL(f16, f16, neon, F16ByF16)
TAMIS_MASKED_KERNEL(f16, f32, neon, F16ByF32)

}  // namespace tamis
