// Elementwise f32 and code unpacking beyond neon.h, same names for every ISA.
#pragma once

#include "base/simd/neon.h"

namespace tamis::lanes {
namespace {

using F32 = simd::F32;
struct Words {
  uint32x4_t low, high;
};

TAMIS_INLINE F32 splat(float v) {
  return simd::splat(v);
}
TAMIS_INLINE F32 mul(F32 a, F32 b) {
  return simd::mul(a, b);
}
TAMIS_INLINE F32 sub(F32 a, F32 b) {
  return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)};
}
TAMIS_INLINE F32 div(F32 a, F32 b) {
  return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)};
}
// b where either is NaN, as x86 has it: fmax would give NaN.
TAMIS_INLINE float32x4_t max4(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcgtq_f32(a, b), a, b);
}
TAMIS_INLINE F32 max(F32 a, F32 b) {
  return {max4(a.low, b.low), max4(a.high, b.high)};
}
TAMIS_INLINE float32x4_t min4(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcltq_f32(a, b), a, b);
}
TAMIS_INLINE F32 min(F32 a, F32 b) {
  return {min4(a.low, b.low), min4(a.high, b.high)};
}
TAMIS_INLINE float max_of(F32 v) {
  return vmaxnmvq_f32(max4(v.low, v.high));
}
TAMIS_INLINE F32 magnitude(F32 v) {
  return {vabsq_f32(v.low), vabsq_f32(v.high)};
}
TAMIS_INLINE F32 with_sign(F32 v, F32 sign) {
  const uint32x4_t bit = vdupq_n_u32(0x80000000u);
  return {vbslq_f32(bit, sign.low, v.low), vbslq_f32(bit, sign.high, v.high)};
}
TAMIS_INLINE uint32x4_t signs(float32x4_t v) {
  return vcltzq_s32(vreinterpretq_s32_f32(v));
}
// negative where the sign bit of `sign` is set, other elsewhere.
TAMIS_INLINE F32 where_negative(F32 sign, F32 negative, F32 other) {
  return {vbslq_f32(signs(sign.low), negative.low, other.low),
          vbslq_f32(signs(sign.high), negative.high, other.high)};
}
TAMIS_INLINE void store(F32 v, float* p) {
  simd::store(v, p);
}

TAMIS_INLINE float32x4_t exp4(float32x4_t x) {
  const float32x4_t least = vdupq_n_f32(-87.0f);
  const uint32x4_t present = vcgeq_f32(x, least);
  x = max4(x, least);
  const float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(0x1.715476p+0f)));
  float32x4_t r = vfmaq_f32(x, n, vdupq_n_f32(-0x1.62e400p-1f));
  r = vfmaq_f32(r, n, vdupq_n_f32(-0x1.7f7d1cp-20f));
  float32x4_t y = vdupq_n_f32(0x1.6850e4p-10f);
  y = vfmaq_f32(vdupq_n_f32(0x1.123bccp-7f), y, r);
  y = vfmaq_f32(vdupq_n_f32(0x1.555b98p-5f), y, r);
  y = vfmaq_f32(vdupq_n_f32(0x1.55548ep-3f), y, r);
  y = vfmaq_f32(vdupq_n_f32(0x1.fffff8p-2f), y, r);
  y = vfmaq_f32(vdupq_n_f32(1.0f), y, r);
  y = vfmaq_f32(vdupq_n_f32(1.0f), y, r);
  const int32x4_t exponent = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
  const float32x4_t scaled = vmulq_f32(y, vreinterpretq_f32_s32(exponent));
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(scaled), present));
}
// e^x for x <= 0 within 2 units in the last place; exactly 0 below -87.
TAMIS_INLINE F32 exp(F32 x) {
  return {exp4(x.low), exp4(x.high)};
}

TAMIS_INLINE Words load_words(const uint8_t* p) {
  return {vreinterpretq_u32_u8(vld1q_u8(p)), vreinterpretq_u32_u8(vld1q_u8(p + 16))};
}
// The codes that start at bit `shift` of each word.
template <int kBits>
TAMIS_INLINE F32 codes(Words words, int shift) {
  // Else GCC loads what all codes of a word are multiplied by first, and spills the sums.
  asm volatile("" ::: "memory");
  const int32x4_t by = vdupq_n_s32(-shift);
  const uint32x4_t mask = vdupq_n_u32((1u << kBits) - 1);
  return {vcvtq_f32_u32(vandq_u32(vshlq_u32(words.low, by), mask)),
          vcvtq_f32_u32(vandq_u32(vshlq_u32(words.high, by), mask))};
}

// out[i] = sum of v[i].
TAMIS_INLINE void store_sums(const F32 (&v)[2], float* out) {
  for (int i = 0; i < 2; ++i) out[i] = simd::sum(v[i]);
}

// Bit i: whether lane i of v is above, or at least, that of t. False for NaN.
TAMIS_INLINE uint32_t bits_of(uint32x4_t low, uint32x4_t high) {
  const uint16x8_t each = vcombine_u16(vmovn_u32(low), vmovn_u32(high));
  const uint16x8_t bit = {1, 2, 4, 8, 16, 32, 64, 128};
  return vaddvq_u16(vandq_u16(each, bit));
}
TAMIS_INLINE uint32_t above(F32 v, F32 t) {
  return bits_of(vcgtq_f32(v.low, t.low), vcgtq_f32(v.high, t.high));
}
TAMIS_INLINE uint32_t at_least(F32 v, F32 t) {
  return bits_of(vcgeq_f32(v.low, t.low), vcgeq_f32(v.high, t.high));
}
TAMIS_INLINE int ones(uint32_t bits) {
  return __builtin_popcount(bits);
}

}  // namespace
}  // namespace tamis::lanes
