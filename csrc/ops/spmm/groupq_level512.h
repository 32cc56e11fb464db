// Weights of a group in f32 vectors, AVX-512.
//
// u4, per group of 16 and one token: vpbroadcastq of its codes, vpsrlvd, which leaves one code in
// the low bits of each lane, vfmadd of 0..15 that makes the table of its 16 weights, vpermps, which
// looks only at those bits, and the product: four operations of ports 0 and 5, five loads. A lane's
// two halves of a qword take turns, so 16 columns of x come transposed as a 4 x 4 square.
#pragma once

#include "ops/spmm/groupq_avx512.h"

namespace tamis {
namespace {

struct Level512 {
  static constexpr bool kTransposed = true;
  static TAMIS_INLINE simd::F32 transpose(simd::F32 v) {
    return _mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
  }

  // The weight of every code.
  static TAMIS_INLINE __m512 table(float scale, float offset) {
    const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return simd::fma(codes, simd::splat(scale), simd::splat(offset));
  }

  template <int G>
  struct U4 {
    using Decode = Decode512;
    static constexpr int kColumns = G, kBytes = G / 2;

    static TAMIS_INLINE void weights(const uint8_t* p, float scale, float offset,
                                     simd::F32 (&w)[G / 16]) {
      const __m512 of_code = table(scale, offset);
      if constexpr (G == 16) {
        int64_t bits;
        __builtin_memcpy(&bits, p, 8);
        const __m512i shift =
            _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
        w[0] = _mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_set1_epi64(bits), shift), of_code);
      } else {
        const __m512i codes =
            _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        w[0] = _mm512_permutexvar_ps(codes, of_code);
        w[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), of_code);
      }
    }
  };

  template <int G>
  struct U8 {
    using Decode = Decode512;
    static constexpr int kColumns = G, kBytes = G;

    static TAMIS_INLINE void weights(const uint8_t* p, float scale, float offset,
                                     simd::F32 (&w)[G / 16]) {
#pragma GCC unroll 2
      for (int j = 0; j < G / 16; ++j) {
        const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * j));
        w[j] = simd::fma(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)), simd::splat(scale),
                         simd::splat(offset));
      }
    }
  };
};

}  // namespace
}  // namespace tamis
