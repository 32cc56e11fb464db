// Prefill attention on neon.
#include "base/simd/lanes_neon.h"
#include "ops/prefill_attention/kernels.h"
#include "ops/prefill_attention/prefill-inl.h"

TAMIS_PREFILL_KERNEL(neon)
