// Prefill attention on scalar.
#include "base/simd/lanes_scalar.h"
#include "ops/prefill_attention/kernels.h"
#include "ops/prefill_attention/prefill-inl.h"

TAMIS_PREFILL_KERNEL(scalar)
