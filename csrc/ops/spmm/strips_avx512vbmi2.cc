// bitmap and nm of bf16 for a few tokens with VBMI2: vpexpandw, then even and odd columns as f32.
#include "base/simd/avx512.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/strips-inl.h"

namespace tamis {
namespace {

// x: of each 32 columns the even ones, then the odd ones.
struct StripSplit : StripFloats {
  using W = BF16;
  using X = BF16;
  static constexpr int kColumns = 32;
  static constexpr int kReadsPast = kColumns;
  static constexpr bool kAhead = true;

  static TAMIS_INLINE __mmask32 first(int n) { return _bzhi_u32(~0u, static_cast<unsigned>(n)); }
  // A bf16 is the high half of its f32: shift the even ones up, mask the odd ones in place.
  static TAMIS_INLINE void split(__m512i pairs, simd::F32 (&w)[2]) {
    w[0] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    w[1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(~0xffff)));
  }
  template <bool kExact>
  static TAMIS_INLINE void expand(uint64_t bits, const W* p, simd::F32 (&w)[2]) {
    const __m512i packed =
        kExact ? _mm512_maskz_loadu_epi16(first(simd::popcount(bits)), p) : _mm512_loadu_si512(p);
    const auto mine = static_cast<__mmask32>(bits);
    split(_mm512_maskz_expand_epi16(mine, packed), w);
  }
  static TAMIS_INLINE void put(const X* x, int n, float* out) {
    simd::F32 halves[2];
    split(_mm512_maskz_loadu_epi16(first(n), x), halves);
    simd::store(halves[0], out);
    simd::store(halves[1], out + simd::kLanes);
  }
};

}  // namespace

TAMIS_STRIPS_FORM(bf16, avx512vbmi2, StripSplit)
TAMIS_STRIPS_KERNELS(bf16, bf16, avx512vbmi2, StripSplit)

}  // namespace tamis
