// bf16 as f32 without BF16 instructions: of 32 columns the even ones, then the odd ones, as a bf16
// is the high half of its f32 (VBMI2).
#pragma once

#include "base/simd/avx512.h"

namespace tamis {
namespace {

struct Bf16Split {
  static constexpr int kColumns = 32;

  static TAMIS_INLINE __mmask32 first(int n) { return _bzhi_u32(~0u, static_cast<unsigned>(n)); }
  // Shifts the even ones up, masks the odd ones in place.
  static TAMIS_INLINE void split(__m512i pairs, simd::F32 (&out)[2]) {
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    out[1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(~0xffff)));
  }
  template <bool kExact>
  static TAMIS_INLINE void expand(uint32_t bits, const BF16* p, simd::F32 (&out)[2]) {
    const __m512i packed =
        kExact ? _mm512_maskz_loadu_epi16(first(simd::popcount(bits)), p) : _mm512_loadu_si512(p);
    split(_mm512_maskz_expand_epi16(bits, packed), out);
  }
  // Columns [0, n) of 32.
  static TAMIS_INLINE void load(const BF16* x, int n, simd::F32 (&out)[2]) {
    split(_mm512_maskz_loadu_epi16(first(n), x), out);
  }
};

}  // namespace
}  // namespace tamis
