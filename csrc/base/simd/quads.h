// Four f32 lanes, which every vector level has, and their transposition.
#pragma once

#if defined(__aarch64__)
#include "base/simd/neon.h"
#else
#include <immintrin.h>
#endif

#include "base/simd/element.h"

namespace tamis {
namespace {

#if defined(__aarch64__)
using Quad = float32x4_t;

TAMIS_INLINE Quad load_quad(const float* p) {
  return vld1q_f32(p);
}
TAMIS_INLINE Quad load_quad(const BF16* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16));
}
TAMIS_INLINE Quad load_quad(const F16* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
}
TAMIS_INLINE void store_quad(Quad v, float* p) {
  vst1q_f32(p, v);
}

TAMIS_INLINE void transpose(Quad (&q)[4]) {
  const float32x4_t a = vtrn1q_f32(q[0], q[1]), b = vtrn2q_f32(q[0], q[1]);
  const float32x4_t c = vtrn1q_f32(q[2], q[3]), d = vtrn2q_f32(q[2], q[3]);
  q[0] = vcombine_f32(vget_low_f32(a), vget_low_f32(c));
  q[1] = vcombine_f32(vget_low_f32(b), vget_low_f32(d));
  q[2] = vcombine_f32(vget_high_f32(a), vget_high_f32(c));
  q[3] = vcombine_f32(vget_high_f32(b), vget_high_f32(d));
}
#else
using Quad = __m128;

TAMIS_INLINE Quad load_quad(const float* p) {
  return _mm_loadu_ps(p);
}
TAMIS_INLINE Quad load_quad(const BF16* p) {
  const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(halves), 16));
}
TAMIS_INLINE Quad load_quad(const F16* p) {
  return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
TAMIS_INLINE void store_quad(Quad v, float* p) {
  _mm_storeu_ps(p, v);
}

TAMIS_INLINE void transpose(Quad (&q)[4]) {
  _MM_TRANSPOSE4_PS(q[0], q[1], q[2], q[3]);
}
#endif

}  // namespace
}  // namespace tamis
