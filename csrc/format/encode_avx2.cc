// Codes of weights on AVX2: the same bits as encode.cc gives, eight weights at a time.
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

// Lanes 0 and 1 = the least of a's lanes and of b's.
TAMIS_INLINE __m128 least(__m256 a, __m256 b) {
  const __m128 of_a = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 of_b = _mm_min_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 both = _mm_min_ps(_mm_unpacklo_ps(of_a, of_b), _mm_unpackhi_ps(of_a, of_b));
  return _mm_min_ps(both, _mm_movehl_ps(both, both));
}

// Weights [8 * j, 8 * j + 8) of the group at column `at`.
template <class T>
TAMIS_INLINE __m256 kept_weights(const T* w, const uint8_t* keep, int64_t at, int j) {
  const __m256 v = simd::load(w + at + 8 * j);
  if (!keep) return v;
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(keep + at + 8 * j));
  const __m256i dropped = _mm256_cmpeq_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_setzero_si256());
  return _mm256_andnot_ps(_mm256_castsi256_ps(dropped), v);
}

// A group from its ends to its codes is a chain of 190 cycles, of which schedulers hold two. So all
// groups take each step together: ends, then scales and zero points in vectors, then codes.
template <int N, class T>
bool encode_groups(const T* w, const uint8_t* keep, const int64_t* at, int count, float highest,
                   uint8_t* codes, uint16_t* scales) {
  const __m256 minus = simd::splat(-0.0f), most = simd::splat(highest);
  alignas(32) float low[kEncodeGroups] = {}, minus_high[kEncodeGroups] = {};
  __m256 sum = simd::zero();
  for (int i = 0; i < count; ++i) {
    __m256 lows = simd::zero(), minus_highs = simd::zero();
#pragma GCC unroll 4
    for (int j = 0; j < N / 8; ++j) {
      const __m256 v = kept_weights(w, keep, at[i], j);
      lows = _mm256_min_ps(v, lows);
      minus_highs = _mm256_min_ps(_mm256_xor_ps(v, minus), minus_highs);
      sum = simd::add(sum, simd::mul(v, simd::zero()));  // NaN once one is Inf or NaN
    }
    const __m128 ends = least(lows, minus_highs);
    low[i] = _mm_cvtss_f32(ends);
    minus_high[i] = _mm_cvtss_f32(_mm_movehdup_ps(ends));
  }
  const __m256 lows = _mm256_load_ps(low);
  const __m256 wanted =
      _mm256_sub_ps(_mm256_xor_ps(_mm256_div_ps(_mm256_load_ps(minus_high), most), minus),
                    _mm256_div_ps(lows, most));
  const __m256 bad = _mm256_or_ps(_mm256_cmp_ps(wanted, simd::splat(kLargestF16), _CMP_NLE_UQ),
                                  _mm256_cmp_ps(sum, simd::zero(), _CMP_NEQ_UQ));
  if (_mm256_movemask_ps(bad) != 0) return false;

  // The smallest f16 that is at least what is wanted.
  const __m128i nearest = _mm256_cvtps_ph(wanted, _MM_FROUND_TO_NEAREST_INT);
  const __m256i below =
      _mm256_castps_si256(_mm256_cmp_ps(_mm256_cvtph_ps(nearest), wanted, _CMP_LT_OQ));
  const __m128i scale = _mm_sub_epi16(
      nearest, _mm_packs_epi32(_mm256_castsi256_si128(below), _mm256_extracti128_si256(below, 1)));
  const __m256 of_scale = _mm256_cvtph_ps(scale);
  const __m256 step = _mm256_blendv_ps(of_scale, simd::splat(1.0f),
                                       _mm256_cmp_ps(of_scale, simd::zero(), _CMP_EQ_OQ));
  const __m256 start = _mm256_div_ps(_mm256_sub_ps(simd::zero(), lows), step);
  const __m256 zero =
      _mm256_min_ps(_mm256_round_ps(start, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), most);
  const __m128i zeros = _mm256_cvtps_ph(zero, _MM_FROUND_TO_NEAREST_INT);
  alignas(32) uint16_t pairs[2 * kEncodeGroups];
  _mm_store_si128(reinterpret_cast<__m128i*>(pairs), _mm_unpacklo_epi16(scale, zeros));
  _mm_store_si128(reinterpret_cast<__m128i*>(pairs + 8), _mm_unpackhi_epi16(scale, zeros));
  __builtin_memcpy(scales, pairs, static_cast<size_t>(count) * 4);

  alignas(32) float steps_of[kEncodeGroups], zero_of[kEncodeGroups];
  _mm256_store_ps(steps_of, step);
  _mm256_store_ps(zero_of, zero);
  for (int i = 0; i < count; ++i, codes += N) {
#pragma GCC unroll 4
    for (int j = 0; j < N / 8; ++j) {
      const __m256 code =
          simd::add(_mm256_div_ps(kept_weights(w, keep, at[i], j), simd::splat(steps_of[i])),
                    simd::splat(zero_of[i]));
      const __m256 inside =
          _mm256_min_ps(_mm256_max_ps(simd::add(code, simd::splat(0.5f)), simd::zero()), most);
      const __m256i whole = _mm256_cvttps_epi32(inside);
      const __m128i shorts =
          _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(codes + 8 * j), _mm_packus_epi16(shorts, shorts));
    }
  }
  return true;
}

template <class T>
bool encode_groups(const GroupSource& row, const int64_t* at, int count, float highest,
                   uint8_t* codes, uint16_t* scales) {
  const auto encode = row.n == 8    ? encode_groups<8, T>
                      : row.n == 16 ? encode_groups<16, T>
                      : row.n == 24 ? encode_groups<24, T>
                                    : encode_groups<32, T>;
  return encode(static_cast<const T*>(row.w), row.keep, at, count, highest, codes, scales);
}

}  // namespace

bool encode_groups_avx2(const GroupSource& row, const int64_t* at, int count, float highest,
                        uint8_t* codes, uint16_t* scales) {
  const auto encode = row.dtype == DType::f32   ? encode_groups<float>
                      : row.dtype == DType::f16 ? encode_groups<F16>
                                                : encode_groups<BF16>;
  return encode(row, at, count, highest, codes, scales);
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
