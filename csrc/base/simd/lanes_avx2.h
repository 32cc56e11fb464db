// Elementwise f32 and code unpacking beyond avx2.h, same names for every ISA.
#pragma once

#include "base/simd/avx2.h"

namespace tamis::lanes {
namespace {

using F32 = simd::F32;
using Words = __m256i;

TAMIS_INLINE F32 splat(float v) {
  return _mm256_set1_ps(v);
}
TAMIS_INLINE F32 mul(F32 a, F32 b) {
  return _mm256_mul_ps(a, b);
}
TAMIS_INLINE F32 sub(F32 a, F32 b) {
  return _mm256_sub_ps(a, b);
}
TAMIS_INLINE F32 div(F32 a, F32 b) {
  return _mm256_div_ps(a, b);
}
TAMIS_INLINE F32 max(F32 a, F32 b) {
  return _mm256_max_ps(a, b);
}
TAMIS_INLINE F32 min(F32 a, F32 b) {
  return _mm256_min_ps(a, b);
}
TAMIS_INLINE float max_of(F32 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
TAMIS_INLINE F32 magnitude(F32 v) {
  return _mm256_andnot_ps(splat(-0.0f), v);
}
TAMIS_INLINE F32 with_sign(F32 v, F32 sign) {
  return _mm256_or_ps(magnitude(v), _mm256_and_ps(splat(-0.0f), sign));
}
// negative where the sign bit of `sign` is set, other elsewhere.
TAMIS_INLINE F32 where_negative(F32 sign, F32 negative, F32 other) {
  return _mm256_blendv_ps(other, negative, sign);
}
TAMIS_INLINE void store(F32 v, float* p) {
  _mm256_storeu_ps(p, v);
}

// e^x for x <= 0 within 2 units in the last place; exactly 0 below -87.
TAMIS_INLINE F32 exp(F32 x) {
  const F32 least = splat(-87.0f);
  const F32 present = _mm256_cmp_ps(x, least, _CMP_GE_OQ);
  x = max(x, least);
  const F32 n =
      _mm256_round_ps(mul(x, splat(0x1.715476p+0f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  F32 r = simd::fma(n, splat(-0x1.62e400p-1f), x);
  r = simd::fma(n, splat(-0x1.7f7d1cp-20f), r);
  F32 y = splat(0x1.6850e4p-10f);
  y = simd::fma(y, r, splat(0x1.123bccp-7f));
  y = simd::fma(y, r, splat(0x1.555b98p-5f));
  y = simd::fma(y, r, splat(0x1.55548ep-3f));
  y = simd::fma(y, r, splat(0x1.fffff8p-2f));
  y = simd::fma(y, r, splat(1.0f));
  y = simd::fma(y, r, splat(1.0f));
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(mul(y, _mm256_castsi256_ps(exponent)), present);
}

TAMIS_INLINE Words load_words(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
// The codes that start at bit `shift` of each word.
template <int kBits>
TAMIS_INLINE F32 codes(Words words, int shift) {
  const __m256i at_zero = _mm256_srl_epi32(words, _mm_cvtsi32_si128(shift));
  return _mm256_cvtepi32_ps(_mm256_and_si256(at_zero, _mm256_set1_epi32((1 << kBits) - 1)));
}

// out[i] = sum of v[i].
TAMIS_INLINE void store_sums(const F32 (&v)[2], float* out) {
  for (int i = 0; i < 2; ++i) out[i] = simd::sum(v[i]);
}

// Bit i: whether lane i of v is above, or at least, that of t. False for NaN.
TAMIS_INLINE uint32_t above(F32 v, F32 t) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, t, _CMP_GT_OQ)));
}
TAMIS_INLINE uint32_t at_least(F32 v, F32 t) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, t, _CMP_GE_OQ)));
}
TAMIS_INLINE int ones(uint32_t bits) {
  return static_cast<int>(_mm_popcnt_u32(bits));
}

}  // namespace
}  // namespace tamis::lanes
