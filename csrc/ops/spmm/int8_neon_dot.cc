// bitmap and nm of i8 on NEON with dot products: per 16 columns and row 2 x (load, tbl, ldr of the
// table), one ins, then one sdot a token.
#include "ops/spmm/codes_neon.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

struct DotProducts {
  static TAMIS_INLINE int32x4_t add(int32x4_t sum, int8x8_t low, int8x8_t high, int8x16_t x) {
    return vdotq_s32(sum, vcombine_s8(low, high), x);
  }
};

}  // namespace

TAMIS_NEON_CODES(neon_dot, DotProducts)

}  // namespace tamis
