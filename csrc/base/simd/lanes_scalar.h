// One lane: the portable counterpart of lanes_avx2.h, with the primitives of avx2.h that its users
// need.
#pragma once

#include "base/simd/scalar.h"

namespace tamis::one {
namespace {

using F32 = float;
inline constexpr int kLanes = 1;
using scalar::store;
using scalar::to_f32;

TAMIS_INLINE F32 zero() {
  return 0.0f;
}
TAMIS_INLINE F32 add(F32 a, F32 b) {
  return a + b;
}
TAMIS_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return a * b + c;
}
template <int R>
struct Scalars {
  const float* p;
  TAMIS_INLINE F32 fma(int r, F32 x, F32 c) const { return p[r] * x + c; }
};
TAMIS_INLINE float sum(F32 v) {
  return v;
}
template <class T>
TAMIS_INLINE F32 load(const T* p) {
  return to_f32(*p);
}
template <class T>
TAMIS_INLINE F32 load(const T* p, int /*n*/) {
  return to_f32(*p);
}
template <class T>
TAMIS_INLINE void store(F32 v, T* p, int /*n*/) {
  store(v, p);
}

}  // namespace
}  // namespace tamis::one

namespace tamis {
namespace simd = one;
}

namespace tamis::lanes {
namespace {

using F32 = float;
using Words = uint32_t;

TAMIS_INLINE F32 splat(float v) {
  return v;
}
TAMIS_INLINE F32 mul(F32 a, F32 b) {
  return a * b;
}
TAMIS_INLINE F32 sub(F32 a, F32 b) {
  return a - b;
}
TAMIS_INLINE F32 div(F32 a, F32 b) {
  return a / b;
}
TAMIS_INLINE F32 max(F32 a, F32 b) {
  return a > b ? a : b;
}
TAMIS_INLINE F32 min(F32 a, F32 b) {
  return a < b ? a : b;
}
TAMIS_INLINE float max_of(F32 v) {
  return v;
}
TAMIS_INLINE F32 magnitude(F32 v) {
  return __builtin_fabsf(v);
}
TAMIS_INLINE F32 with_sign(F32 v, F32 sign) {
  return __builtin_copysignf(v, sign);
}
TAMIS_INLINE F32 where_negative(F32 sign, F32 negative, F32 other) {
  return __builtin_signbit(sign) ? negative : other;
}
TAMIS_INLINE void store(F32 v, float* p) {
  *p = v;
}
TAMIS_INLINE F32 exp(F32 x) {
  return __builtin_expf(x);
}

TAMIS_INLINE Words load_words(const uint8_t* p) {
  Words word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}
template <int kBits>
TAMIS_INLINE F32 codes(Words words, int shift) {
  return static_cast<float>(words >> shift & ((1u << kBits) - 1));
}

// out[i] = sum of v[i].
TAMIS_INLINE void store_sums(const F32 (&v)[1], float* out) {
  out[0] = v[0];
}

// Bit 0: whether v is above, or at least, t. False for NaN.
TAMIS_INLINE uint32_t above(F32 v, F32 t) {
  return v > t;
}
TAMIS_INLINE uint32_t at_least(F32 v, F32 t) {
  return v >= t;
}
TAMIS_INLINE int ones(uint32_t bits) {
  return static_cast<int>(bits);
}

}  // namespace
}  // namespace tamis::lanes
