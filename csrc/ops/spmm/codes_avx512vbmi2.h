// What the i8 kernels with VBMI2 and VNNI share: expanded weights and quantized x.
//
// vpdpbusd multiplies unsigned by signed bytes. The weights are the unsigned ones: stored codes
// with the sign bit flipped are w + 128, and expand merges them into 128s, which stand for zero.
// So sums come out too large by 128 * sum(codes of x), which depends on the token alone: it is
// subtracted, lane by lane, in what a sum starts with.
#pragma once

#include "base/simd/avx512.h"
#include "ops/spmm/codes.h"

namespace tamis {
namespace {

TAMIS_INLINE __m512i bytes_of(int8_t v) {
  return _mm512_set1_epi8(v);
}

// 64 columns of w + 128. Reads 64 bytes; with kExact no more than popcount(bits).
template <bool kExact>
TAMIS_INLINE __m512i expand_codes(uint64_t bits, const int8_t* p) {
  const __m512i packed =
      kExact ? _mm512_maskz_loadu_epi8(
                   _bzhi_u64(~uint64_t{0}, static_cast<unsigned>(simd::popcount(bits))), p)
             : _mm512_loadu_si512(p);
  const __m512i sign = bytes_of(-128);
  return _mm512_mask_expand_epi8(sign, bits, _mm512_xor_si512(packed, sign));
}

// sum += four products of w (unsigned) and x (signed) in each lane. GCC 12 copies the accumulators
// of the intrinsic, and spills them when there are many.
TAMIS_INLINE void dot(__m512i& sum, __m512i w, __m512i x) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
}

inline constexpr float kTiny = 0x1p-100f;  // below it 127 / largest may not be finite

// 16 columns from x on, or those of them that are among the first n.
template <class X>
TAMIS_INLINE simd::F32 columns(const X* x, int64_t at, int64_t n) {
  return at + 16 <= n ? simd::load(x + at)
                      : simd::load(x + (at < n ? at : 0), static_cast<int>(at < n ? n - at : 0));
}

// Bytes of 64 integers: packed within 128-bit lanes, then the lanes put in order.
TAMIS_INLINE __m512i narrow(const __m512i (&v)[4]) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(
      order, _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3])));
}

inline constexpr int kStepWords = kStepColumns / 64;

// Codes of kStepColumns columns, from the vectors that a call gives; returns their step.
template <class At>
TAMIS_INLINE float quantize_vectors(const At& at, __m512i (&codes)[kStepWords]) {
  constexpr int kVectors = kStepColumns / 16;
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  // Read once, as they fit into registers.
  simd::F32 v[kVectors];
  // Bit patterns of magnitudes order as the magnitudes do, with NaN above Inf.
  __m512i most[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) {
    v[i] = at(i);
    most[i % 2] =
        _mm512_max_epu32(most[i % 2], _mm512_and_si512(_mm512_castps_si512(v[i]), magnitude));
  }
  const uint32_t bits = _mm512_reduce_max_epu32(_mm512_max_epu32(most[0], most[1]));
  const float largest = __builtin_bit_cast(float, bits);
  const bool finite = bits < 0x7f800000u;
  float factor = finite && bits != 0 ? 127.0f / largest : 0.0f;
  if (largest < kTiny) {
    constexpr float kGrow = 0x1p100f;
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) v[i] = simd::mul(v[i], simd::splat(kGrow));
    factor = bits != 0 ? 127.0f / (largest * kGrow) : 0.0f;
  }
#pragma GCC unroll 4
  for (int w = 0; w < kStepWords; ++w) {
    __m512i four[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      four[i] = _mm512_cvtps_epi32(simd::mul(v[w * 4 + i], simd::splat(factor)));
    }
    codes[w] = narrow(four);
  }
  return finite ? largest / 127.0f : __builtin_nanf("");
}

// Codes of the n <= kStepColumns columns at x, zeros after them; returns their step.
template <class X>
TAMIS_INLINE float quantize(const X* x, int64_t n, __m512i (&codes)[kStepWords]) {
  if (n == kStepColumns) {
    return quantize_vectors(
        [=](int i) __attribute__((always_inline)) { return simd::load(x + i * 16); }, codes);
  }
  return quantize_vectors(
      [=](int i) __attribute__((always_inline)) { return columns(x, i * 16, n); }, codes);
}

}  // namespace
}  // namespace tamis
