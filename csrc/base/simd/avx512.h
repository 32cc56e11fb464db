// AVX-512 primitives of the kernels: 16 f32 lanes. Same names as avx2.h and scalar.h.
//
// | what              | instruction   | Zen 4 latency / per cycle | note | | expand f32        |
// vpexpandd     | 4 / 1                     | merge-masked: see opaque_zero()        | | expand
// bf16, f16  | vpexpandd     | + vpmovzxwd, vpslld       | no 16-bit expand before VBMI2          |
// | products          | vfmadd231ps   | 4 / 1                     | 512-bit operations take both
// halves    |
#pragma once

#include <immintrin.h>

#include "base/simd/element.h"

// GCC 12 takes the undefined pass-through operands inside its own intrinsics for ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace tamis::avx512 {
namespace {

using F32 = __m512;
inline constexpr int kLanes = 16;

TAMIS_INLINE F32 zero() {
  return _mm512_setzero_ps();
}
TAMIS_INLINE F32 splat(float v) {
  return _mm512_set1_ps(v);
}
TAMIS_INLINE F32 add(F32 a, F32 b) {
  return _mm512_add_ps(a, b);
}
TAMIS_INLINE F32 mul(F32 a, F32 b) {
  return _mm512_mul_ps(a, b);
}
TAMIS_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return _mm512_fmadd_ps(a, b, c);
}
// R neighbouring numbers to multiply vectors by.
template <int R>
struct Scalars {
  const float* p;
  TAMIS_INLINE F32 fma(int r, F32 x, F32 c) const { return avx512::fma(splat(p[r]), x, c); }
};
TAMIS_INLINE float sum(F32 v) {
  return _mm512_reduce_add_ps(v);
}

// Lane i = sum of v[i], i < N of 1, 2, 4 or 8; what the other lanes hold is not said. Adds
// transposed vectors: a third of the instructions of N separate sums.
TAMIS_INLINE F32 sums(const F32 (&v)[1]) {
  return _mm512_castps128_ps512(_mm_set_ss(sum(v[0])));
}
TAMIS_INLINE F32 add_halves(F32 v) {  // 16 lanes to 4, four apart
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  return _mm512_castps128_ps512(
      _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
TAMIS_INLINE F32 pair(F32 a, F32 b) {  // in each four lanes: a, b, a, b
  return add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
TAMIS_INLINE F32 quad(F32 a, F32 b, F32 c, F32 d) {  // in each four lanes: a, b, c, d
  const __m512d ab = _mm512_castps_pd(pair(a, b)), cd = _mm512_castps_pd(pair(c, d));
  return add(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
             _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
}
TAMIS_INLINE F32 sums(const F32 (&v)[2]) {
  const F32 ab = add_halves(pair(v[0], v[1]));
  return add(ab, _mm512_permute_ps(ab, 0x4e));
}
TAMIS_INLINE F32 sums(const F32 (&v)[4]) {
  return add_halves(quad(v[0], v[1], v[2], v[3]));
}
TAMIS_INLINE F32 sums(const F32 (&v)[8]) {
  const F32 low = quad(v[0], v[1], v[2], v[3]), high = quad(v[4], v[5], v[6], v[7]);
  const F32 halves =
      add(_mm512_shuffle_f32x4(low, high, 0x44), _mm512_shuffle_f32x4(low, high, 0xee));
  return add(_mm512_shuffle_f32x4(halves, halves, 0x08),
             _mm512_shuffle_f32x4(halves, halves, 0x0d));
}

TAMIS_INLINE int popcount(uint64_t bits) {
  return static_cast<int>(_mm_popcnt_u64(bits));
}

// Zen 4 and 5 make a zero-masked vpexpand wait for the old contents of its destination. Merging
// into a zero that the compiler cannot see through avoids the {z} form; the copy of the zero is
// free.
TAMIS_INLINE __m512i opaque_zero() {
  __m512i z = _mm512_setzero_si512();
  __asm__("" : "+v"(z));
  return z;
}

TAMIS_INLINE __mmask16 first(int n) {
  return static_cast<__mmask16>(_bzhi_u32(0xffffu, n));
}

TAMIS_INLINE F32 widen_bf16(__m256i v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

// kLanes elements.
TAMIS_INLINE F32 load(const float* p) {
  return _mm512_loadu_ps(p);
}
TAMIS_INLINE F32 load(const BF16* p) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
TAMIS_INLINE F32 load(const F16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
TAMIS_INLINE F32 load(const int8_t* p) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v));
}

// The first n elements, n <= kLanes, nothing past them; zero elsewhere.
TAMIS_INLINE F32 load(const float* p, int n) {
  return _mm512_maskz_loadu_ps(first(n), p);
}
TAMIS_INLINE F32 load(const BF16* p, int n) {
  return widen_bf16(_mm256_maskz_loadu_epi16(first(n), p));
}
TAMIS_INLINE F32 load(const F16* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
}
TAMIS_INLINE F32 load(const int8_t* p, int n) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)));
}

// The packed values at p to the lanes whose bit is set, zero elsewhere. Reads kLanes elements; with
// kExact no more than popcount(bits), as masked loads do not fault on what they leave out.
inline constexpr int kReadsPast = kLanes;

template <bool kExact, class T>
TAMIS_INLINE F32 expand(uint32_t bits, const T* p) {
  const F32 packed = kExact ? load(p, popcount(bits)) : load(p);
  return _mm512_castsi512_ps(_mm512_mask_expand_epi32(opaque_zero(), static_cast<__mmask16>(bits),
                                                      _mm512_castps_si512(packed)));
}

// Four lanes, or three or four times four, then zeros.
TAMIS_INLINE F32 join(const __m128 (&q)[1]) {
  return _mm512_zextps128_ps512(q[0]);
}
TAMIS_INLINE F32 join(const __m128 (&q)[3]) {
  const __m512 low = _mm512_zextps128_ps512(q[0]);
  return _mm512_insertf32x4(_mm512_insertf32x4(low, q[1], 1), q[2], 2);
}
TAMIS_INLINE F32 join(const __m128 (&q)[4]) {
  const __m512 low = _mm512_zextps128_ps512(q[0]);
  return _mm512_insertf32x4(_mm512_insertf32x4(_mm512_insertf32x4(low, q[1], 1), q[2], 2), q[3], 3);
}

// x[indices[i]], kLanes of them; or the first n <= kLanes, zero after them.
TAMIS_INLINE F32 gather(const float* x, const int32_t* indices) {
  return _mm512_i32gather_ps(_mm512_loadu_si512(indices), x, 4);
}
TAMIS_INLINE F32 gather(const float* x, const int32_t* indices, int n) {
  const __m512i at = _mm512_maskz_loadu_epi32(first(n), indices);
  return _mm512_mask_i32gather_ps(zero(), first(n), at, x, 4);
}
// 16-bit elements one by one: a 32-bit gather would read past the end of x.
template <class T>
TAMIS_INLINE F32 gather(const T* x, const int32_t* indices, int n = kLanes) {
  alignas(32) T element[kLanes] = {};
  for (int i = 0; i < n; ++i) element[i] = x[indices[i]];
  return load(element);
}

TAMIS_INLINE float to_f32(float v) {
  return v;
}
TAMIS_INLINE float to_f32(F16 v) {
  return _cvtsh_ss(v.bits);
}
TAMIS_INLINE float to_f32(BF16 v) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(v.bits) << 16);
}

TAMIS_INLINE void store(float v, float* p) {
  *p = v;
}
TAMIS_INLINE void store(float v, F16* p) {
  p->bits = _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT);
}
TAMIS_INLINE void store(float v, BF16* p) {
  const auto u = __builtin_bit_cast(uint32_t, v);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>(v != v ? (u >> 16) | 0x40u : rounded);
}

TAMIS_INLINE void store(F32 v, float* p) {
  _mm512_storeu_ps(p, v);
}
// The first n lanes, n <= kLanes, and nothing past them.
TAMIS_INLINE void store(F32 v, float* p, int n) {
  _mm512_mask_storeu_ps(p, first(n), v);
}
TAMIS_INLINE void store(F32 v, F16* p, int n) {
  _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
TAMIS_INLINE __m256i round_bf16(F32 v) {
  const __m512i u = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_srli_epi32(_mm512_mask_mov_epi32(up, nan, quiet), 16);
  return _mm512_cvtepi32_epi16(rounded);
}
TAMIS_INLINE void store(F32 v, BF16* p, int n) {
  _mm256_mask_storeu_epi16(p, first(n), round_bf16(v));
}
TAMIS_INLINE void store(F32 v, BF16* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_bf16(v));
}
TAMIS_INLINE void store(F32 v, F16* p) {
  const __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
}

}  // namespace
}  // namespace tamis::avx512

namespace tamis {
namespace simd = avx512;
}
