// Scores of labels on AVX2: codes reach 15 and q8 127, so pairs of products fit 16 bits.
#include "base/simd/lanes_avx2.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/labels-inl.h"

namespace tamis {
namespace {

struct LabelDots {
  using Sum = __m256i;
  struct Codes {
    __m256i low, high;
  };
  static TAMIS_INLINE Sum zero() { return _mm256_setzero_si256(); }
  static TAMIS_INLINE Codes split(const uint8_t* words) {
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    return {_mm256_and_si256(w, mask), _mm256_and_si256(_mm256_srli_epi32(w, 4), mask)};
  }
  static TAMIS_INLINE Sum dot(Sum sum, const Codes& codes, const int8_t* q8) {
    int low, high;
    __builtin_memcpy(&low, q8, sizeof low);
    __builtin_memcpy(&high, q8 + 4, sizeof high);
    const __m256i pairs =
        _mm256_add_epi16(_mm256_maddubs_epi16(codes.low, _mm256_set1_epi32(low)),
                         _mm256_maddubs_epi16(codes.high, _mm256_set1_epi32(high)));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static TAMIS_INLINE lanes::F32 to_f32(Sum sum) { return _mm256_cvtepi32_ps(sum); }
};

}  // namespace

TAMIS_SCORE_LABELS(LabelDots, avx2)

}  // namespace tamis
