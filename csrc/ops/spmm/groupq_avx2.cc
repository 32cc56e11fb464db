// groupq on AVX2: per 8 weights vpmovzxbd, vcvtdq2ps and vfmadd make them, one vfmadd a token takes
// them; halves of bytes are split 16 or 32 at a time.
#include "base/simd/avx2.h"
#include "ops/spmm/groupq-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

struct Decode256 {
  static TAMIS_INLINE int64_t put_offsets(uint64_t bits, uint32_t first, uint32_t step,
                                          uint32_t* out) {
    uint32_t* to = out;
    for (; bits != 0; bits &= bits - 1) {
      *to++ = first + static_cast<uint32_t>(__builtin_ctzll(bits)) * step;
    }
    return to - out;
  }
  static TAMIS_INLINE void put_scales(const uint16_t* pairs, int64_t n, float* scale,
                                      float* offset) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (int64_t i = 0; i < n; i += 8) {
      const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n - i)), lane);
      const __m256i both =
          _mm256_maskload_epi32(reinterpret_cast<const int*>(pairs + 2 * i), there);
      const __m256i low = _mm256_and_si256(both, _mm256_set1_epi32(0xffff));
      const __m256i mixed = _mm256_packus_epi32(low, _mm256_srli_epi32(both, 16));
      const __m256i halves = _mm256_permute4x64_epi64(mixed, 0xd8);  // scales, then zero points
      const __m256 s = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
      const __m256 z = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
      _mm256_store_ps(scale + i, s);
      _mm256_store_ps(offset + i, _mm256_fnmadd_ps(s, z, _mm256_setzero_ps()));
    }
  }
};

struct Level256 {
  static constexpr bool kTransposed = false;

  static TAMIS_INLINE void widen(__m128i codes, float scale, float offset, simd::F32* w) {
    const simd::F32 s = simd::splat(scale), o = simd::splat(offset);
    w[0] = simd::fma(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes)), s, o);
    w[1] = simd::fma(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8))), s, o);
  }

  template <int G>
  struct U4 {
    using Decode = Decode256;
    static constexpr int kColumns = G, kBytes = G / 2;

    static TAMIS_INLINE void weights(const uint8_t* p, float scale, float offset,
                                     simd::F32 (&w)[G / 8]) {
      const auto* at = reinterpret_cast<const __m128i*>(p);
      const __m128i bytes = G == 16 ? _mm_loadl_epi64(at) : _mm_loadu_si128(at);
      const __m128i low = _mm_and_si128(bytes, _mm_set1_epi8(15));
      const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
      if constexpr (G == 16) {
        widen(_mm_unpacklo_epi64(low, high), scale, offset, w);
      } else {
        widen(low, scale, offset, w);
        widen(high, scale, offset, w + 2);
      }
    }
  };

  template <int G>
  struct U8 {
    using Decode = Decode256;
    static constexpr int kColumns = G, kBytes = G;

    static TAMIS_INLINE void weights(const uint8_t* p, float scale, float offset,
                                     simd::F32 (&w)[G / 8]) {
#pragma GCC unroll 2
      for (int j = 0; j < G / 16; ++j) {
        widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * j)), scale, offset,
              w + 2 * j);
      }
    }
  };
};

}  // namespace

TAMIS_GROUPQ_KERNELS(avx2, Level256)

}  // namespace tamis
