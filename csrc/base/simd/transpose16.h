// 16 vectors of 16 dwords, transposed in place: 4x4 blocks within lanes, then lanes.
#pragma once

#include <immintrin.h>

#include "base/simd/element.h"

namespace tamis {
namespace {

TAMIS_INLINE void transpose(__m512i (&v)[16]) {
  __m512i q[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512i ab = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    const __m512i ab2 = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    const __m512i cd = _mm512_unpacklo_epi32(v[i + 2], v[i + 3]);
    const __m512i cd2 = _mm512_unpackhi_epi32(v[i + 2], v[i + 3]);
    q[i] = _mm512_unpacklo_epi64(ab, cd);
    q[i + 1] = _mm512_unpackhi_epi64(ab, cd);
    q[i + 2] = _mm512_unpacklo_epi64(ab2, cd2);
    q[i + 3] = _mm512_unpackhi_epi64(ab2, cd2);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i low02 = _mm512_shuffle_i32x4(q[j], q[j + 4], 0x88);
    const __m512i low13 = _mm512_shuffle_i32x4(q[j], q[j + 4], 0xdd);
    const __m512i high02 = _mm512_shuffle_i32x4(q[j + 8], q[j + 12], 0x88);
    const __m512i high13 = _mm512_shuffle_i32x4(q[j + 8], q[j + 12], 0xdd);
    v[j] = _mm512_shuffle_i32x4(low02, high02, 0x88);
    v[j + 4] = _mm512_shuffle_i32x4(low13, high13, 0x88);
    v[j + 8] = _mm512_shuffle_i32x4(low02, high02, 0xdd);
    v[j + 12] = _mm512_shuffle_i32x4(low13, high13, 0xdd);
  }
}

}  // namespace
}  // namespace tamis
