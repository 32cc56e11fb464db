// groupq to bf16: w = scale * code + offset, made in f32 and rounded, so it errs by up to 2^-8 of
// itself.
//
// 64 columns at a time: the codes and scales of their groups expand to their places, zeros where
// none is stored. Of 4 bits: the 16 weights of two groups are a table in one register, from which
// vpermw takes 32 columns. Reads nothing past what is stored.
#pragma once

#include "base/simd/avx512.h"
#include "ops/spmm/groupq_avx512.h"

namespace tamis {
namespace {

// Of 16 columns, scale and offset; zeros for columns that are not stored.
struct ColumnPairs {
  alignas(32) float of[4][2];
};

// The stored groups of 64 columns, `bits` of them, whose scales are at `from`.
template <int G>
TAMIS_INLINE void put_pairs(const uint16_t* from, uint32_t bits, ColumnPairs& to) {
  const __m256 halves =
      _mm256_cvtph_ps(_mm_maskz_expandloadu_epi32(static_cast<__mmask8>(bits), from));
  __m256 pairs =
      _mm256_mask_fnmadd_ps(halves, 0xaa, _mm256_permute_ps(halves, 0xb1), _mm256_setzero_ps());
  if (G == 32) pairs = _mm256_permutevar8x32_ps(pairs, _mm256_setr_epi32(0, 1, 0, 1, 2, 3, 2, 3));
  _mm256_store_ps(to.of[0], pairs);
}

// Two vectors of f32 as one of bf16, a first.
TAMIS_INLINE __m512i narrow(__m512 a, __m512 b) {
  return (__m512i)_mm512_cvtne2ps_pbh(b, a);
}

// The groups of 64 columns, whose codes are at p, to `out`.
template <int G>
TAMIS_INLINE void put_u4(const uint8_t* p, uint32_t bits, const ColumnPairs& pairs, uint32_t* out) {
  const uint32_t qwords = G == 16 ? bits : _pdep_u32(bits, 5) * 3;
  const __m512i codes =
      split_halves<G>(_mm256_maskz_expandloadu_epi64(static_cast<__mmask8>(qwords), p));
  const __m512 of_code = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i second = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const float (*two)[2] = pairs.of + 2 * j;
    const __m512i table =
        narrow(simd::fma(of_code, simd::splat(two[0][0]), simd::splat(two[0][1])),
               simd::fma(of_code, simd::splat(two[1][0]), simd::splat(two[1][1])));
    const __m256i half =
        j == 0 ? _mm512_castsi512_si256(codes) : _mm512_extracti64x4_epi64(codes, 1);
    const __m512i place = _mm512_or_si512(_mm512_cvtepu8_epi16(half), second);
    _mm512_store_si512(out + 16 * j, _mm512_permutexvar_epi16(place, table));
  }
}

template <int G>
TAMIS_INLINE void put_u8(const uint8_t* p, uint32_t bits, const ColumnPairs& pairs, uint32_t* out) {
  const uint32_t qwords = G == 16 ? _pdep_u32(bits, 0x55) * 3 : _pdep_u32(bits, 0x11) * 15;
  alignas(64) uint8_t codes[64];
  _mm512_store_si512(codes, _mm512_maskz_expandloadu_epi64(static_cast<__mmask8>(qwords), p));
#pragma GCC unroll 2
  for (int j = 0; j < 4; j += 2) {
    __m512 w[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const auto* mine = reinterpret_cast<const __m128i*>(codes + 16 * (j + i));
      const float* pair = pairs.of[j + i];
      w[i] = simd::fma(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128(mine))),
                       simd::splat(pair[0]), simd::splat(pair[1]));
    }
    _mm512_store_si512(out + 8 * j, narrow(w[0], w[1]));
  }
}

// The stored groups of 64 columns, `bits` of them, whose codes and scales are at these places.
template <DType kW, int G>
TAMIS_INLINE void put_groups(const uint8_t* codes, const uint16_t* scales, uint32_t bits,
                             uint32_t* out) {
  ColumnPairs pairs;
  put_pairs<G>(scales, bits, pairs);
  if constexpr (kW == DType::u4) {
    put_u4<G>(codes, bits, pairs, out);
  } else {
    put_u8<G>(codes, bits, pairs, out);
  }
}

}  // namespace
}  // namespace tamis
