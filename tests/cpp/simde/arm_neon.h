// arm_neon.h for x86, so that the NEON sources run under sanitizers (make test-simde): SIMDe, and
// what its release 0.7.4 lacks of what we use.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_CHECK_IMMEDIATE_CONSTANT
#include <simde/arm/neon.h>

#define __fp16 _Float16
#define vshll_high_n_u16(a, n) vshll_n_u16(vget_high_u16(a), n)

namespace {

inline float16x4_t half_of(float16x8_t v, int from) {
  float16x4_t half;
  __builtin_memcpy(&half, reinterpret_cast<const char*>(&v) + from, sizeof half);
  return half;
}
inline float16x4_t vget_low_f16(float16x8_t v) {
  return half_of(v, 0);
}
inline float32x4_t vcvt_high_f32_f16(float16x8_t v) {
  return vcvt_f32_f16(half_of(v, 8));
}

inline float32x4_t vfmsq_f32(float32x4_t a, float32x4_t b, float32x4_t c) {
  return vfmaq_f32(a, vnegq_f32(b), c);
}
inline float32x4_t vdivq_f32(float32x4_t a, float32x4_t b) {
  float x[4], y[4];
  vst1q_f32(x, a);
  vst1q_f32(y, b);
  for (int i = 0; i < 4; ++i) x[i] /= y[i];
  return vld1q_f32(x);
}
inline int32x4_t vcvtnq_s32_f32(float32x4_t v) {
  float x[4];
  int32_t n[4];
  vst1q_f32(x, v);
  // Saturating, zero for NaN.
  for (int i = 0; i < 4; ++i) {
    const float r = __builtin_rintf(x[i]);
    n[i] = r != r         ? 0
           : r >= 0x1p31f ? INT32_MAX
           : r < -0x1p31f ? INT32_MIN
                          : static_cast<int32_t>(r);
  }
  return vld1q_s32(n);
}
inline float vmaxnmvq_f32(float32x4_t v) {
  float x[4];
  vst1q_f32(x, v);
  return __builtin_fmaxf(__builtin_fmaxf(x[0], x[1]), __builtin_fmaxf(x[2], x[3]));
}

}  // namespace
