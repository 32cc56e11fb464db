// Decoding groupq rows with AVX-512: compress for places, two conversions for 16 scales; codes of
// 4 bits split.
#pragma once

#include "base/simd/avx512.h"
#include "ops/spmm/groupq_rows.h"

namespace tamis {
namespace {

struct Decode512 {
  static TAMIS_INLINE int64_t put_offsets(uint64_t bits, uint32_t first, uint32_t step,
                                          uint32_t* out) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i offset =
        _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)),
                         _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(step))));
    const __m512i more = _mm512_set1_epi32(static_cast<int>(16 * step));
    uint32_t* to = out;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i, bits >>= 16) {
      const auto mine = static_cast<__mmask16>(bits);
      _mm512_storeu_si512(to, _mm512_mask_compress_epi32(simd::opaque_zero(), mine, offset));
      to += simd::popcount(mine);
      offset = _mm512_add_epi32(offset, more);
    }
    return to - out;
  }
  static TAMIS_INLINE void put_scales(const uint16_t* pairs, int64_t n, float* scale,
                                      float* offset) {
    for (int64_t i = 0; i < n; i += 16) {
      const __mmask16 there = simd::first(n - i < 16 ? static_cast<int>(n - i) : 16);
      const __m512i both = _mm512_maskz_loadu_epi32(there, pairs + 2 * i);
      const __m512 s = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(both));
      const __m512 z = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
      _mm512_store_ps(scale + i, s);
      _mm512_store_ps(offset + i, _mm512_fnmadd_ps(s, z, _mm512_setzero_ps()));
    }
  }
};

// The codes of 4 bits of groups worth 64 columns, in order, a byte each.
template <int G>
TAMIS_INLINE __m512i split_halves(__m256i packed) {
  const __m512i order = G == 16 ? _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3)
                                : _mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3);
  const __m512i shift = G == 16 ? _mm512_setr_epi64(0, 4, 0, 4, 0, 4, 0, 4)
                                : _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
  const __m512i halves =
      _mm512_srlv_epi64(_mm512_permutexvar_epi64(order, _mm512_castsi256_si512(packed)), shift);
  return _mm512_and_si512(halves, _mm512_set1_epi8(15));
}

}  // namespace
}  // namespace tamis
