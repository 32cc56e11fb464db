// Scores of labels on NEON: codes reach 15 and q8 127, so pairs of products fit 16 bits.
#include "ops/kv_select/labels_neon.h"

#include "ops/kv_select/kernels.h"

namespace tamis {
namespace {

struct LabelDots : LabelCodes {
  static TAMIS_INLINE int8x16_t four(const int8_t* q8) {
    int32_t bytes;
    __builtin_memcpy(&bytes, q8, sizeof bytes);
    return vreinterpretq_s8_s32(vdupq_n_s32(bytes));
  }
  static TAMIS_INLINE Sum dot(Sum sum, const Codes& codes, const int8_t* q8) {
    const int8x16_t low = four(q8), high = four(q8 + 4);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const int16x8_t first = vmlal_s8(vmull_s8(vget_low_s8(codes.low[i]), vget_low_s8(low)),
                                       vget_low_s8(codes.high[i]), vget_low_s8(high));
      const int16x8_t second = vmlal_high_s8(vmull_high_s8(codes.low[i], low), codes.high[i], high);
      const int32x4_t fours = vpaddq_s32(vpaddlq_s16(first), vpaddlq_s16(second));
      sum.part[i] = vaddq_s32(sum.part[i], fours);
    }
    return sum;
  }
};

}  // namespace

TAMIS_SCORE_LABELS(LabelDots, neon)

}  // namespace tamis
