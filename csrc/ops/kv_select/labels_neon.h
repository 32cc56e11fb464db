// What the NEON levels of label scores share: words of 8 tokens split into bytes, sums of i32.
#pragma once

#include "base/simd/lanes_neon.h"
#include "ops/kv_select/labels-inl.h"

namespace tamis {
namespace {

struct LabelCodes {
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
  static TAMIS_INLINE lanes::F32 to_f32(const Sum& sum) {
    return {vcvtq_f32_s32(sum.part[0]), vcvtq_f32_s32(sum.part[1])};
  }
};

}  // namespace
}  // namespace tamis
