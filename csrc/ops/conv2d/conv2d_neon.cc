// Convolution in channel planes on neon.
#include "base/simd/lanes_neon.h"
#include "ops/conv2d/kernels.h"

namespace tamis {
namespace {
// Vectors of a strip for 1, 2 and 4 outputs together: what the registers hold.
inline constexpr int kStripVectors[] = {5, 4, 2};
}  // namespace
}  // namespace tamis

#include "ops/conv2d/conv2d-inl.h"

namespace tamis {

TAMIS_CONV2D_KERNELS(neon)

}  // namespace tamis
