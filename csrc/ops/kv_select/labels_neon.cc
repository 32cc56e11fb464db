// Scores of labels on NEON: codes reach 15 and q8 127, so pairs of products fit 16 bits.
#include "base/simd/lanes_neon.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/labels-inl.h"

namespace tamis {
namespace {

struct LabelDots {
  struct Sum {
    int32x4_t part[2];  // of 4 tokens each
  };
  struct Codes {
    int8x16_t low[2], high[2];
  };
  static TAMIS_INLINE Sum zero() { return {{vdupq_n_s32(0), vdupq_n_s32(0)}}; }
  static TAMIS_INLINE Codes split(const uint8_t* words) {
    Codes c;
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const uint8x16_t w = vld1q_u8(words + 16 * i);
      c.low[i] = vreinterpretq_s8_u8(vandq_u8(w, vdupq_n_u8(15)));
      c.high[i] = vreinterpretq_s8_u8(vshrq_n_u8(w, 4));
    }
    return c;
  }
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
  static TAMIS_INLINE lanes::F32 to_f32(const Sum& sum) {
    return {vcvtq_f32_s32(sum.part[0]), vcvtq_f32_s32(sum.part[1])};
  }
};

}  // namespace

TAMIS_SCORE_LABELS(LabelDots, neon)

}  // namespace tamis
