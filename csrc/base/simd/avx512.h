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
TAMIS_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return _mm512_fmadd_ps(a, b, c);
}
TAMIS_INLINE float sum(F32 v) {
  return _mm512_reduce_add_ps(v);
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

// The packed values at p to the lanes whose bit is set, zero elsewhere; reads popcount(bits)
// elements and no more, so kExact makes no difference here. The memory form is as fast as a full
// load and a register expand (measured on Zen 4), and faults are suppressed past the last value.
inline constexpr int kReadsPast = 0;

template <bool kExact>
TAMIS_INLINE F32 expand(uint32_t bits, const float* p) {
  return _mm512_mask_expandloadu_ps(_mm512_castsi512_ps(opaque_zero()),
                                    static_cast<__mmask16>(bits), p);
}
template <bool kExact, class T>
TAMIS_INLINE F32 expand(uint32_t bits, const T* p) {
  return _mm512_castsi512_ps(_mm512_mask_expand_epi32(
      opaque_zero(), static_cast<__mmask16>(bits), _mm512_castps_si512(load(p, popcount(bits)))));
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

}  // namespace
}  // namespace tamis::avx512

namespace tamis {
namespace simd = avx512;
}
