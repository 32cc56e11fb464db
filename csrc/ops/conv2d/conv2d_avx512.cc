// Convolution in channel planes on avx512.
#include "base/simd/lanes_avx512.h"
#include "ops/conv2d/kernels.h"

namespace tamis {
namespace {
// Vectors of a strip for 1, 2 and 4 outputs together: what the registers hold.
inline constexpr int kStripVectors[] = {5, 5, 5};
}  // namespace
}  // namespace tamis

#include "ops/conv2d/conv2d-inl.h"

namespace tamis {

TAMIS_CONV2D_KERNELS(avx512)

}  // namespace tamis
