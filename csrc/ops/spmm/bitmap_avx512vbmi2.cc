// bitmap and nm with VBMI2, without BF16: vpexpandw, then even and odd columns as exact f32
// products.
#include "base/simd/avx512.h"
#include "ops/spmm/bitmap-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

struct Split {
  __m512 even, odd;
};

struct ExpandSplit {
  using W = BF16;
  using X = BF16;
  using Weights = Split;
  using Tokens = Split;
  using Sum = __m512;
  static constexpr int kColumns = 32;
  static constexpr int kReadsPast = kColumns;
  static constexpr int kMaxTokens = 4;
  static constexpr int rows(int tokens) { return tokens <= 3 ? 4 : 2; }

  // A bf16 is the high half of its f32: shift the even ones up, mask the odd ones in place.
  static TAMIS_INLINE Split split(__m512i pairs) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(~0xffff)))};
  }
  static TAMIS_INLINE Tokens load(const X* p) { return split(_mm512_loadu_si512(p)); }
  static TAMIS_INLINE Tokens load(const X* p, int n) {
    return split(_mm512_maskz_loadu_epi16(_bzhi_u32(~0u, n), p));
  }
  template <bool kExact>
  static TAMIS_INLINE Weights expand(uint64_t bits, const W* p) {
    const __m512i packed = kExact
                               ? _mm512_maskz_loadu_epi16(
                                     _bzhi_u32(~0u, static_cast<unsigned>(simd::popcount(bits))), p)
                               : _mm512_loadu_si512(p);
    return split(
        _mm512_mask_expand_epi16(simd::opaque_zero(), static_cast<__mmask32>(bits), packed));
  }
  static TAMIS_INLINE Sum dot(Sum sum, Weights w, Tokens x) {
    return simd::fma(w.odd, x.odd, simd::fma(w.even, x.even, sum));
  }
};

}  // namespace

TAMIS_MASKED_KERNEL(bf16, bf16, avx512vbmi2, ExpandSplit)

}  // namespace tamis
