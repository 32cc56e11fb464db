// Codes of weights on AVX2: the same bits as encode.cc gives, eight weights at a time.
#include <algorithm>

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

// Lane 0 = fn over all lanes.
template <class Fn>
TAMIS_INLINE float reduce(__m256 v, const Fn& fn) {
  __m128 half = fn(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = fn(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(fn(half, _mm_movehdup_ps(half)));
}

uint16_t f16_above(float v) {
  const uint16_t h = _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT);
  return _cvtsh_ss(h) < v ? static_cast<uint16_t>(h + 1) : h;
}

template <class T>
bool encode_group(const T* source, const uint8_t* keep, int n, float highest, uint8_t* codes,
                  uint16_t* scale) {
  alignas(32) float w[32];
  __m256 lows = simd::zero(), highs = simd::zero(), sum = simd::zero();
  for (int j = 0; j < n; j += 8) {
    __m256 v = simd::load(source + j);
    if (keep) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(keep + j));
      const __m256i dropped =
          _mm256_cmpeq_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_setzero_si256());
      v = _mm256_andnot_ps(_mm256_castsi256_ps(dropped), v);
    }
    _mm256_store_ps(w + j, v);
    lows = _mm256_min_ps(v, lows);
    highs = _mm256_max_ps(v, highs);
    sum = simd::add(sum, simd::mul(v, simd::zero()));  // NaN once one is Inf or NaN
  }
  const float low = reduce(lows, [](__m128 a, __m128 b) { return _mm_min_ps(a, b); });
  const float high = reduce(highs, [](__m128 a, __m128 b) { return _mm_max_ps(a, b); });
  const float wanted = high / highest - low / highest;
  if (!(wanted <= kLargestF16) ||
      reduce(sum, [](__m128 a, __m128 b) { return _mm_add_ps(a, b); }) != 0) {
    return false;
  }
  scale[0] = f16_above(wanted);
  const float step = scale[0] == 0 ? 1.0f : _cvtsh_ss(scale[0]);
  const __m128 start = _mm_set_ss((0.0f - low) / step);
  const __m128 near = _mm_round_ss(start, start, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const float zero = std::min(highest, _mm_cvtss_f32(near));
  scale[1] = _cvtss_sh(zero, _MM_FROUND_TO_NEAREST_INT);
  for (int j = 0; j < n; j += 8) {
    const __m256 code =
        simd::add(_mm256_div_ps(_mm256_load_ps(w + j), simd::splat(step)), simd::splat(zero));
    const __m256 inside = _mm256_min_ps(
        _mm256_max_ps(simd::add(code, simd::splat(0.5f)), simd::zero()), simd::splat(highest));
    const __m256i whole = _mm256_cvttps_epi32(inside);
    const __m128i shorts =
        _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(codes + j), _mm_packus_epi16(shorts, shorts));
  }
  return true;
}

}  // namespace

bool encode_group_avx2(const void* w, DType dtype, const uint8_t* keep, int n, float highest,
                       uint8_t* codes, uint16_t* scale) {
  switch (dtype) {
    case DType::f32:
      return encode_group(static_cast<const float*>(w), keep, n, highest, codes, scale);
    case DType::f16:
      return encode_group(static_cast<const F16*>(w), keep, n, highest, codes, scale);
    default:
      return encode_group(static_cast<const BF16*>(w), keep, n, highest, codes, scale);
  }
}

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
