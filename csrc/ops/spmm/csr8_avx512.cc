// csr8 on AVX-512: 16 values per step, exact f32 products.
#include "base/simd/avx512.h"
#include "ops/spmm/csr8-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

template <class WType>
struct PickF32 {
  using W = WType;
  using X = float;
  struct Chunk {
    __m512 part[4];
  };
  static constexpr int kLanes = 16;
  static constexpr int rows(int tokens) { return tokens <= 2 ? 4 : 2; }

  static TAMIS_INLINE Chunk load(const X* p) {
    return {{simd::load(p), simd::load(p + 16), simd::load(p + 32), simd::load(p + 48)}};
  }
  static TAMIS_INLINE Chunk load(const X* p, int n) {
    Chunk c;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int left = n - 16 * i;
      c.part[i] = left > 0 ? simd::load(p + 16 * i, left < 16 ? left : 16) : simd::zero();
    }
    return c;
  }
  static TAMIS_INLINE __m512 values(const W* p, int n) { return simd::load(p, n); }
  static TAMIS_INLINE __m512i columns(const uint8_t* p, int n) {
    return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(simd::first(n), p));
  }
  // Each permute looks at the low five bits; the sixth says which of the two holds the input.
  static TAMIS_INLINE __m512 pick(const Chunk& x, __m512i at) {
    const __m512 low = _mm512_permutex2var_ps(x.part[0], at, x.part[1]);
    const __m512 high = _mm512_permutex2var_ps(x.part[2], at, x.part[3]);
    return _mm512_mask_mov_ps(low, _mm512_test_epi32_mask(at, _mm512_set1_epi32(32)), high);
  }
  static TAMIS_INLINE __m512 dot(__m512 sum, __m512 w, __m512 x) { return simd::fma(w, x, sum); }
};

// 16-bit inputs: one permute over both halves of a word, then widened.
template <class T>
struct PickHalf {
  using W = T;
  using X = T;
  struct Chunk {
    __m512i part[2];
  };
  static constexpr int kLanes = 16;
  static constexpr int rows(int) { return 4; }

  static TAMIS_INLINE Chunk load(const X* p) {
    return {{_mm512_loadu_si512(p), _mm512_loadu_si512(p + 32)}};
  }
  static TAMIS_INLINE Chunk load(const X* p, int n) {
    const auto high = static_cast<unsigned>(n > 32 ? n - 32 : 0);
    return {
        {_mm512_maskz_loadu_epi16(_bzhi_u32(~0u, static_cast<unsigned>(n)), p),
         high ? _mm512_maskz_loadu_epi16(_bzhi_u32(~0u, high), p + 32) : _mm512_setzero_si512()}};
  }
  static TAMIS_INLINE __m512 values(const W* p, int n) { return simd::load(p, n); }
  static TAMIS_INLINE __m512i columns(const uint8_t* p, int n) {
    return _mm512_cvtepu8_epi16(_mm256_castsi128_si256(_mm_maskz_loadu_epi8(simd::first(n), p)));
  }
  static TAMIS_INLINE __m512 pick(const Chunk& x, __m512i at) {
    const __m256i half =
        _mm512_castsi512_si256(_mm512_permutex2var_epi16(x.part[0], at, x.part[1]));
    if constexpr (kDType<T> == DType::bf16) return simd::widen_bf16(half);
    return _mm512_cvtph_ps(half);
  }
  static TAMIS_INLINE __m512 dot(__m512 sum, __m512 w, __m512 x) { return simd::fma(w, x, sum); }
};

}  // namespace

TAMIS_CSR8_KERNEL(f32, f32, avx512, PickF32<float>)
TAMIS_CSR8_KERNEL(bf16, f32, avx512, PickF32<BF16>)
TAMIS_CSR8_KERNEL(bf16, bf16, avx512, PickHalf<BF16>)
TAMIS_CSR8_KERNEL(f16, f16, avx512, PickHalf<F16>)

}  // namespace tamis
