// Factors of kv_page codes as pairs of bytes x = 256 * high + low, and their products with codes by
// vpdpbusd (pages_avx512vbmi2.cc has the loops, and what they cost).
#pragma once

#include "base/simd/lanes_avx512.h"
#include "ops/sparse_attention/pages-inl.h"

namespace tamis {
namespace {

constexpr int64_t kChunk = 32;     // factors of a vector: their bytes are one vector too
constexpr int64_t kHalf = 16;      // codes that a step takes, 4 vectors of them
constexpr int64_t kHalfWords = 8;  // 4 words of high bytes, 4 of low ones
constexpr int64_t kChunkWords = 16;
constexpr float kMostFactor = 32512.0f;  // 127 * 256: its high byte still rounds up
constexpr float kMostScale = 32767.0f;
constexpr float kLn2 = 0x1.62e430p-1f, kPerLn2 = 0x1.715476p+0f;
// What a product of factor and scale by vpmulhrsw, which halves 16 bits away, has to be times.
constexpr float kUnit = 32768.0f / (kMostFactor * kMostScale);

// Where 32 int16 in the order of vpackssdw have, for each 16 codes, their high bytes, then their
// low ones, in the order in which codes come out of words.
template <int kBits>
struct ByteOrder {
  alignas(64) uint8_t at[64] = {};
  constexpr ByteOrder() {
    constexpr int kSteps = 8 / kBits;
    for (int i = 0; i < 32; ++i) {
      const int vector = i / 4, byte = i % 4;
      const int code =
          vector / kSteps * (32 / kBits) + 2 * (vector % kSteps + byte % 2 * kSteps) + byte / 2;
      const int place = code % 16 / 4 * 8 + code / 16 * 4 + code % 4;
      const int to = i / 16 * 32 + i % 16;
      at[to] = static_cast<uint8_t>(2 * place + 1);
      at[to + 16] = static_cast<uint8_t>(2 * place);
    }
  }
};
template <int kBits>
constexpr ByteOrder<kBits> kByteOrder;

TAMIS_INLINE __m512i to_i16(simd::F32 low, simd::F32 high) {
  return _mm512_packs_epi32(_mm512_cvtps_epi32(low), _mm512_cvtps_epi32(high));
}

// 32 numbers times `factor`, or 16 and zeros, as int16.
template <class T>
TAMIS_INLINE __m512i to_i16(const T* from, int64_t left, float factor) {
  const simd::F32 f = simd::splat(factor);
  return to_i16(simd::mul(simd::load(from), f),
                left > kHalf ? simd::mul(simd::load(from + kHalf), f) : simd::zero());
}

// High bytes, then low bytes, of 32 factors x = 256 * high + low. With codes of 8 bits, which are
// the unsigned operand, low is signed: adding 128 rounds the high byte and flips the sign of the
// low one. Smaller codes can be the signed operand, and low is as it stands in x.
template <int kBits>
TAMIS_INLINE void put_bytes(__m512i x, int32_t* out) {
  const __m512i half = _mm512_set1_epi16(128);
  const __m512i bytes = kBits < 8 ? x : _mm512_xor_si512(_mm512_add_epi16(x, half), half);
  _mm512_store_si512(out, _mm512_permutexvar_epi8(_mm512_load_si512(kByteOrder<kBits>.at), bytes));
}

TAMIS_INLINE __m512i load_bits(const F16* p, int64_t left) {
  if (left > kHalf) return _mm512_loadu_si512(p);
  return _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// The largest of 32 f16 that are not negative.
TAMIS_INLINE float largest_f16(__m512i bits) {
  const __m256i half =
      _mm256_max_epu16(_mm512_castsi512_si256(bits), _mm512_extracti64x4_epi64(bits, 1));
  const __m128i eight =
      _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)));
  return _cvtsh_ss(static_cast<uint16_t>(~_mm_extract_epi16(least, 0)));
}

TAMIS_INLINE float inverse(float most) {
  return most > 0.0f ? kMostScale / most : 0.0f;
}

// q as int16 of each row's own step.
template <int R>
struct ByteQueries {
  alignas(64) int16_t q[R][kKvMaxHeadDim];
  float step[R];

  TAMIS_INLINE explicit ByteQueries(const AttentionPart& a) {
    for (int r = 0; r < R; ++r) {
      const float* from = a.q + r * a.head_dim;
      simd::F32 most = simd::zero();
      for (int64_t c = 0; c < a.head_dim; c += simd::kLanes) {
        most = lanes::max(most, lanes::magnitude(simd::load(from + c)));
      }
      const float largest = lanes::max_of(most);
      const float factor = largest > 0.0f ? kMostFactor / largest : 0.0f;
      step[r] = largest * kUnit;
      for (int64_t c = 0; c < a.head_dim; c += kChunk) {
        _mm512_store_si512(q[r] + c, to_i16(from + c, a.head_dim - c, factor));
      }
    }
  }
};

// sums[v][r] += 16 codes of kVectors vectors of lanes at `words`, which move on, times the factors
// of each row.
template <int kBits, int R, int kVectors>
TAMIS_INLINE void byte_products(const uint8_t* (&words)[kVectors], const int32_t* factors,
                                int64_t row_stride, __m512i (&high)[kVectors][R],
                                __m512i (&low)[kVectors][R]) {
  constexpr int kSteps = 8 / kBits;
  constexpr int64_t kRowBytes = 4 * kKvLanes;
#pragma GCC unroll 4
  for (int u = 0; u < kBits / 2; ++u) {
    __m512i word[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) word[v] = _mm512_loadu_si512(words[v] + u * kRowBytes);
#pragma GCC unroll 4
    for (int i = 0; i < kSteps; ++i) {
      __m512i code[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const __m512i at_zero = _mm512_srli_epi32(word[v], static_cast<unsigned>(kBits * i));
        code[v] =
            kBits == 8 ? word[v] : _mm512_and_si512(at_zero, _mm512_set1_epi8((1 << kBits) - 1));
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const int32_t* at = factors + r * row_stride + u * kSteps + i;
        const __m512i more = _mm512_set1_epi32(at[0]), less = _mm512_set1_epi32(at[4]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          high[v][r] = _mm512_dpbusd_epi32(high[v][r], code[v], more);
          low[v][r] = kBits < 8 ? _mm512_dpbusd_epi32(low[v][r], less, code[v])
                                : _mm512_dpbusd_epi32(low[v][r], code[v], less);
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) words[v] += kBits / 2 * kRowBytes;
}

TAMIS_INLINE simd::F32 joined(__m512i high, __m512i low, float unit, simd::F32 sum) {
  sum = simd::fma(_mm512_cvtepi32_ps(low), simd::splat(unit), sum);
  return simd::fma(_mm512_cvtepi32_ps(high), simd::splat(256.0f * unit), sum);
}

}  // namespace
}  // namespace tamis
