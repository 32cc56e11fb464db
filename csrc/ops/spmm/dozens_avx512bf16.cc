// bitmap and nm for many tokens, rows in lanes: f32 by f32 FMA and bf16 by vdpbf16ps.
#include "base/simd/avx512.h"
#include "ops/spmm/bf16_pair.h"
#include "ops/spmm/dozens-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

using Broadcast [[gnu::may_alias]] = float;

struct DozensF32 : F32Unit<float, float> {
  template <bool kExact>
  static TAMIS_INLINE __m512i spread(uint64_t bits, const W* p) {
    return _mm512_castps_si512(simd::expand<kExact>(static_cast<uint32_t>(bits), p));
  }
  static TAMIS_INLINE void add_broadcast(simd::F32& sum, simd::F32 w, const char* x) {
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0"
            : "+v"(sum)
            : "v"(w), "m"(*reinterpret_cast<const Broadcast*>(x)));
  }
  template <int R>
  static TAMIS_INLINE void store_rows(const simd::F32 (&sums)[R], X* y) {
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) simd::store(sums[r], y + 16 * r);
  }
};

struct DozensPair : Bf16Pair {
  template <bool kExact>
  static TAMIS_INLINE __m512i spread(uint64_t bits, const W* p) {
    const auto mine = static_cast<uint32_t>(bits);
    __m512i packed = kExact ? _mm512_maskz_loadu_epi16(_bzhi_u32(~0u, simd::popcount(bits)), p)
                            : _mm512_loadu_si512(p);
    __asm__("" : "+v"(packed));  // as in Bf16Pair
    return _mm512_mask_expand_epi16(simd::opaque_zero(), mine, packed);
  }
  static TAMIS_INLINE void add_broadcast(simd::F32& sum, simd::F32 w, const char* x) {
    __asm__("vdpbf16ps %2%{1to16%}, %1, %0"
            : "+v"(sum)
            : "v"(w), "m"(*reinterpret_cast<const Broadcast*>(x)));
  }
  // Denormal sums become zeros, as they do between products.
  static TAMIS_INLINE void store_rows(const simd::F32 (&sums)[1], X* y) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), (__m256i)_mm512_cvtneps_pbh(sums[0]));
  }
  static TAMIS_INLINE void store_rows(const simd::F32 (&sums)[2], X* y) {
    _mm512_storeu_si512(y, (__m512i)_mm512_cvtne2ps_pbh(sums[1], sums[0]));
  }
};

}  // namespace

TAMIS_DOZENS_FORM(f32, avx512bf16, DozensF32)
TAMIS_DOZENS_KERNELS(f32, f32, avx512bf16, DozensF32)
TAMIS_DOZENS_FORM(bf16, avx512bf16, DozensPair)
TAMIS_DOZENS_KERNELS(bf16, bf16, avx512bf16, DozensPair)

}  // namespace tamis
