// groupq on AVX-512, products in f32.
#include "base/simd/avx512.h"
#include "ops/spmm/groupq-inl.h"
#include "ops/spmm/groupq_level512.h"
#include "ops/spmm/kernels.h"

namespace tamis {

TAMIS_GROUPQ_KERNELS(avx512, Level512)

}  // namespace tamis
