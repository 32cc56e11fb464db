// bitmap and nm of i8 on NEON: bytes expanded by table, smull and smlal with 8-bit codes of x.
//
// |w * code| <= 128 * 127, so two products fit 16 bits. Per 16 columns and row: 2 x (load, tbl,
// ldr of the table); then smull, smlal2, sadalp a token.
#include "ops/spmm/codes_neon.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

struct LongProducts {
  static TAMIS_INLINE int32x4_t add(int32x4_t sum, int8x8_t low, int8x8_t high, int8x16_t x) {
    const int16x8_t products = vmlal_s8(vmull_s8(low, vget_low_s8(x)), high, vget_high_s8(x));
    return vpadalq_s16(sum, products);
  }
};

}  // namespace

TAMIS_NEON_CODES(neon, LongProducts)

}  // namespace tamis
