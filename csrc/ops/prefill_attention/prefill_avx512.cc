// Prefill attention on avx512.
#include "base/simd/lanes_avx512.h"
#include "ops/prefill_attention/kernels.h"
#include "ops/prefill_attention/prefill-inl.h"

TAMIS_PREFILL_KERNEL(avx512)
