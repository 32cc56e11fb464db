// Scores of labels on AVX-512 VNNI: vpdpbusd with four bytes of q broadcast from memory.
#include "base/simd/lanes_avx512.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/labels-inl.h"

namespace tamis {
namespace {

struct LabelDots {
  using Sum = __m512i;
  struct Codes {
    __m512i low, high;
  };
  static TAMIS_INLINE Sum zero() { return _mm512_setzero_si512(); }
  static TAMIS_INLINE Codes split(const uint8_t* words) {
    const __m512i mask = _mm512_set1_epi8(15), w = _mm512_loadu_si512(words);
    return {_mm512_and_si512(w, mask), _mm512_and_si512(_mm512_srli_epi32(w, 4), mask)};
  }
  static TAMIS_INLINE Sum dot(Sum sum, const Codes& codes, const int8_t* q8) {
    int low, high;
    __builtin_memcpy(&low, q8, sizeof low);
    __builtin_memcpy(&high, q8 + 4, sizeof high);
    sum = _mm512_dpbusd_epi32(sum, codes.low, _mm512_set1_epi32(low));
    return _mm512_dpbusd_epi32(sum, codes.high, _mm512_set1_epi32(high));
  }
  static TAMIS_INLINE lanes::F32 to_f32(Sum sum) { return _mm512_cvtepi32_ps(sum); }
};

}  // namespace

TAMIS_SCORE_LABELS(LabelDots, avx512vbmi2)

}  // namespace tamis
