// bitmap and nm of bf16 for a few tokens with VBMI2 and BF16: vpexpandw and vdpbf16ps, 32 columns
// per step. vdpbf16ps takes denormal inputs as zero and flushes denormal sums.
#include "base/simd/avx512.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/strips-inl.h"

namespace tamis {
namespace {

// x as given, columns in order.
struct StripDot {
  using W = BF16;
  using X = BF16;
  using Element = BF16;
  using Vector = __m512i;
  static constexpr int kColumns = 32, kVectorColumns = 32;
  static constexpr int kReadsPast = kColumns;
  static constexpr bool kAhead = false;

  static TAMIS_INLINE Vector load(const BF16* p) { return _mm512_loadu_si512(p); }
  static TAMIS_INLINE Vector load(const BF16* p, int n) {
    return _mm512_maskz_loadu_epi16(_bzhi_u32(~0u, static_cast<unsigned>(n)), p);
  }
  static TAMIS_INLINE simd::F32 dot(simd::F32 sum, Vector w, Vector x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
  }
  template <bool kExact>
  static TAMIS_INLINE void expand(uint64_t bits, const W* p, Vector (&w)[1]) {
    const Vector packed = kExact ? load(p, simd::popcount(bits)) : load(p);
    w[0] = _mm512_mask_expand_epi16(simd::opaque_zero(), static_cast<__mmask32>(bits), packed);
  }
  static TAMIS_INLINE void put(const X* x, int n, Element* out) {
    _mm512_storeu_si512(out, load(x, n));
  }
};

}  // namespace

TAMIS_STRIPS_FORM(bf16, avx512bf16, StripDot)
TAMIS_STRIPS_KERNELS(bf16, bf16, avx512bf16, StripDot)

}  // namespace tamis
