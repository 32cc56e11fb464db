// The unit of panels for bf16 by bf16: two columns, multiplied by vdpbf16ps, which takes denormal
// inputs as zero and flushes denormal sums.
#pragma once

#include "base/simd/avx512.h"
#include "base/simd/quads.h"

#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12, its own intrinsics

namespace tamis {
namespace {

struct Bf16Pair {
  using W = BF16;
  using X = BF16;
  using Element = uint32_t;
  static constexpr int64_t kColumns = 2;
  static constexpr int64_t kReadsPast = 32;

  template <bool kExact>
  static TAMIS_INLINE void expand(uint64_t bits, const W* p, Element* out) {
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s) {
      const auto mine = static_cast<uint32_t>(bits >> (32 * s));
      const int count = simd::popcount(mine);
      __m512i packed =
          kExact ? _mm512_maskz_loadu_epi16(_bzhi_u32(~0u, count), p) : _mm512_loadu_si512(p);
      // GCC would expand from memory, which takes 10 cycles for these 64 columns instead of 6.
      __asm__("" : "+v"(packed));
      _mm512_storeu_si512(out + 16 * s,
                          _mm512_mask_expand_epi16(simd::opaque_zero(), mine, packed));
      p += count;
    }
  }
  static TAMIS_INLINE void put(Element* out, int64_t column, W v) {
    reinterpret_cast<BF16*>(out)[column] = v;
  }
  static TAMIS_INLINE simd::F32 product(simd::F32 sum, const Element* w, simd::F32 x) {
    const __m512i pair = _mm512_set1_epi32(static_cast<int>(*w));
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(x), (__m512bh)pair);
  }
  static TAMIS_INLINE Quad load4(const X* p) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(p));
  }
  static TAMIS_INLINE simd::F32 load16(const X* p) { return _mm512_loadu_ps(p); }
  static TAMIS_INLINE Element load1(const X* p, int64_t columns) {
    return p->bits | (columns > 1 ? uint32_t{p[1].bits} << 16 : 0u);
  }
};

// The same beside products (beside-inl.h).
struct BesidePair : Bf16Pair {
  static constexpr int kVectorColumns = 32;

  static TAMIS_INLINE __m512i spread(uint64_t bits, __m512i packed) {
    return _mm512_mask_expand_epi16(simd::opaque_zero(), static_cast<__mmask32>(bits), packed);
  }
  static TAMIS_INLINE simd::F32 dot(simd::F32 sum, __m512i w, __m512i x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
  }
};

}  // namespace
}  // namespace tamis
