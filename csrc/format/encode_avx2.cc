// i8 codes of weights on AVX2: the same bits as encode_scalar, eight weights at a time.
#include "base/simd/avx2.h"
#include "format/encode.h"

namespace tamis {
namespace {

TAMIS_INLINE __m256i steps(simd::F32 w, simd::F32 divisor) {
  return _mm256_cvtps_epi32(_mm256_div_ps(w, divisor));  // rounds to even
}

// Saturating packs clamp to [-128, 127]; |w / divisor| rounds to 127 at most where a weight is
// kept.
template <class T>
void encode(const T* w, int n, float divisor, int8_t* codes) {
  const simd::F32 by = simd::splat(divisor);
  int j = 0;
  for (; j + 32 <= n; j += 32) {
    const __m256i low =
        _mm256_packs_epi32(steps(simd::load(w + j), by), steps(simd::load(w + j + 8), by));
    const __m256i high =
        _mm256_packs_epi32(steps(simd::load(w + j + 16), by), steps(simd::load(w + j + 24), by));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + j),
                        _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order));
  }
  for (; j < n; j += 8) {
    alignas(32) int32_t rest[8];
    const int left = n - j < 8 ? n - j : 8;
    _mm256_store_si256(reinterpret_cast<__m256i*>(rest), steps(simd::load(w + j, left), by));
    for (int i = 0; i < left; ++i) codes[j + i] = static_cast<int8_t>(rest[i]);
  }
}

}  // namespace

void encode_avx2(const void* w, DType dtype, int n, float divisor, int8_t* codes) {
  switch (dtype) {
    case DType::f32:
      return encode(static_cast<const float*>(w), n, divisor, codes);
    case DType::f16:
      return encode(static_cast<const F16*>(w), n, divisor, codes);
    default:
      return encode(static_cast<const BF16*>(w), n, divisor, codes);
  }
}

}  // namespace tamis
