// Four f32 lanes, which every x86 vector level has, and their transposition.
#pragma once

#include <immintrin.h>

#include "base/simd/element.h"

namespace tamis {
namespace {

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

}  // namespace
}  // namespace tamis
