// Attention over kv_page records on AVX-512 BF16: pairs of codes become bf16, less the middle of
// their range, which halves what rounding the folded factors to bf16 costs, and vdpbf16ps
// multiplies 32 at once. 2- and 4-bit codes: one shift and one table look-up by vpermw, whose index
// is 5 bits wide, so the table repeats. 8-bit: f32 by or-ing the exponent of 2^23, then its upper
// half.
// Bound: 1024 vdpbf16ps for a page of 32 tokens, d = 128, four rows, whatever the bits; 8-bit also
// by the 13 instructions that widen 64 codes.   Tried: keys by vpdpbusd with q folded and rounded
// to int8 for each page: half the products, but 624 against 634 ns a page (4 bits) for the rounding
// and a larger error.
#include "base/simd/lanes_avx512.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/pages-inl.h"

namespace tamis {
namespace {

// bf16 bits of a multiple of 1/2 below 128.
constexpr uint16_t bf16_bits(float v) {
  return static_cast<uint16_t>(__builtin_bit_cast(uint32_t, v) >> 16);
}

template <int kBits>
struct CodeTable {
  alignas(64) uint16_t value[32] = {};
  constexpr CodeTable() {
    constexpr int kCodes = 1 << kBits;
    for (int i = 0; i < 32; ++i) {
      value[i] = bf16_bits(static_cast<float>(i % kCodes) - 0.5f * static_cast<float>(kCodes - 1));
    }
  }
};
template <int kBits>
constexpr CodeTable<kBits> kCodeTable;

struct Bf16Codes {
  using Factor = uint16_t;
  static constexpr int kPer = 2;
  template <int kBits>
  static constexpr float kMiddle = kBits == 8 ? 128.0f : 0.5f * ((1 << kBits) - 1);

  template <int kBits>
  static TAMIS_INLINE __m512i codes(__m512i words, int step) {
    const __m512i pair = _mm512_srli_epi32(words, static_cast<unsigned>(kBits * step));
    if constexpr (kBits < 8) {
      return _mm512_permutexvar_epi16(pair, _mm512_load_si512(kCodeTable<kBits>.value));
    } else {
      return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(less_middle(pair), 16),
                                     less_middle(_mm512_srli_epi32(pair, 16)));
    }
  }
  static TAMIS_INLINE simd::F32 multiply(__m512i codes, const Factor* factors, simd::F32 sum) {
    int pair;
    __builtin_memcpy(&pair, factors, sizeof pair);
    return _mm512_dpbf16_ps(sum, (__m512bh)codes, (__m512bh)_mm512_set1_epi32(pair));
  }
  static TAMIS_INLINE void put(simd::F32 v, Factor* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), (__m256i)_mm512_cvtneps_pbh(v));
  }

 private:
  // Low bytes as f32, less 128.
  static TAMIS_INLINE __m512i less_middle(__m512i words) {
    const __m512i biased = _mm512_ternarylogic_epi32(words, _mm512_set1_epi32(0xff),
                                                     _mm512_set1_epi32(0x4b000000), 0xea);
    return _mm512_castps_si512(
        _mm512_sub_ps(_mm512_castsi512_ps(biased), _mm512_set1_ps(0x1p23f + 128.0f)));
  }
};

}  // namespace

TAMIS_PAGE_ATTENTION(Bf16Codes, avx512bf16)

}  // namespace tamis
