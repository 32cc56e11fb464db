// Elementwise f32 and code unpacking beyond avx512.h, same names for every ISA.
#pragma once

#include "base/simd/avx512.h"

namespace tamis::lanes {
namespace {

using F32 = simd::F32;
using Words = __m512i;

TAMIS_INLINE F32 splat(float v) {
  return _mm512_set1_ps(v);
}
TAMIS_INLINE F32 mul(F32 a, F32 b) {
  return _mm512_mul_ps(a, b);
}
TAMIS_INLINE F32 sub(F32 a, F32 b) {
  return _mm512_sub_ps(a, b);
}
TAMIS_INLINE F32 div(F32 a, F32 b) {
  return _mm512_div_ps(a, b);
}
TAMIS_INLINE F32 max(F32 a, F32 b) {
  return _mm512_max_ps(a, b);
}
TAMIS_INLINE F32 min(F32 a, F32 b) {
  return _mm512_min_ps(a, b);
}
TAMIS_INLINE float max_of(F32 v) {
  return _mm512_reduce_max_ps(v);
}
TAMIS_INLINE F32 magnitude(F32 v) {
  return _mm512_abs_ps(v);
}
TAMIS_INLINE F32 with_sign(F32 v, F32 sign) {
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(0x80000000u));
  return _mm512_castsi512_ps(
      _mm512_ternarylogic_epi32(mask, _mm512_castps_si512(sign), _mm512_castps_si512(v), 0xca));
}
// negative where the sign bit of `sign` is set, other elsewhere.
TAMIS_INLINE F32 where_negative(F32 sign, F32 negative, F32 other) {
  return _mm512_mask_mov_ps(other, _mm512_movepi32_mask(_mm512_castps_si512(sign)), negative);
}
TAMIS_INLINE void store(F32 v, float* p) {
  _mm512_storeu_ps(p, v);
}

// e^x for x <= 0 within 2 units in the last place; exactly 0 below -87. Those lanes are masked, as
// a vscalefps that underflows takes 250 cycles of microcode on Emerald Rapids.
TAMIS_INLINE F32 exp(F32 x) {
  const __mmask16 present = _mm512_cmp_ps_mask(x, splat(-87.0f), _CMP_NLT_UQ);
  const F32 n = _mm512_roundscale_ps(mul(x, splat(0x1.715476p+0f)), _MM_FROUND_TO_NEAREST_INT);
  F32 r = simd::fma(n, splat(-0x1.62e400p-1f), x);
  r = simd::fma(n, splat(-0x1.7f7d1cp-20f), r);
  F32 y = splat(0x1.6850e4p-10f);
  y = simd::fma(y, r, splat(0x1.123bccp-7f));
  y = simd::fma(y, r, splat(0x1.555b98p-5f));
  y = simd::fma(y, r, splat(0x1.55548ep-3f));
  y = simd::fma(y, r, splat(0x1.fffff8p-2f));
  y = simd::fma(y, r, splat(1.0f));
  y = simd::fma(y, r, splat(1.0f));
  return _mm512_maskz_scalef_ps(present, y, n);
}

TAMIS_INLINE Words load_words(const uint8_t* p) {
  return _mm512_loadu_si512(p);
}
// The codes that start at bit `shift` of each word.
template <int kBits>
TAMIS_INLINE F32 codes(Words words, int shift) {
  const __m512i at_zero = _mm512_srl_epi32(words, _mm_cvtsi32_si128(shift));
  return _mm512_cvtepi32_ps(_mm512_and_si512(at_zero, _mm512_set1_epi32((1 << kBits) - 1)));
}

// out[i] = sum of v[i].
TAMIS_INLINE void store_sums(const F32 (&v)[4], float* out) {
  _mm_storeu_ps(out, _mm512_castps512_ps128(simd::sums(v)));
}

// Bit i: whether lane i of v is above, or at least, that of t. False for NaN.
TAMIS_INLINE uint32_t above(F32 v, F32 t) {
  return _mm512_cmp_ps_mask(v, t, _CMP_GT_OQ);
}
TAMIS_INLINE uint32_t at_least(F32 v, F32 t) {
  return _mm512_cmp_ps_mask(v, t, _CMP_GE_OQ);
}
TAMIS_INLINE int ones(uint32_t bits) {
  return static_cast<int>(_mm_popcnt_u32(bits));
}

}  // namespace
}  // namespace tamis::lanes
