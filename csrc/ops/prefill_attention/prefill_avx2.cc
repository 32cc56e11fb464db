// Prefill attention on avx2.
#include "base/simd/lanes_avx2.h"
#include "ops/prefill_attention/kernels.h"
#include "ops/prefill_attention/prefill-inl.h"

TAMIS_PREFILL_KERNEL(avx2)
