// bitmap and nm with VBMI2 and BF16: vpexpandw and vdpbf16ps, 32 columns per step.
// vdpbf16ps takes denormal inputs as zero and flushes denormal sums.
#include "base/simd/avx512.h"
#include "ops/spmm/bitmap-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

struct ExpandDot {
  using W = BF16;
  using X = BF16;
  using Weights = __m512i;
  using Tokens = __m512i;
  using Sum = __m512;
  static constexpr int kColumns = 32;
  static constexpr int kReadsPast = kColumns;
  static constexpr int kMaxTokens = 6;
  static constexpr int rows(int) { return 4; }

  static TAMIS_INLINE Tokens load(const X* p) { return _mm512_loadu_si512(p); }
  static TAMIS_INLINE Tokens load(const X* p, int n) {
    return _mm512_maskz_loadu_epi16(_bzhi_u32(~0u, n), p);
  }
  template <bool kExact>
  static TAMIS_INLINE Weights expand(uint64_t bits, const W* p) {
    const __m512i packed = kExact ? load(p, simd::popcount(bits)) : _mm512_loadu_si512(p);
    return _mm512_mask_expand_epi16(simd::opaque_zero(), static_cast<__mmask32>(bits), packed);
  }
  static TAMIS_INLINE Sum dot(Sum sum, Weights w, Tokens x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
  }
};

}  // namespace

TAMIS_MASKED_KERNEL(bf16, bf16, avx512bf16, ExpandDot)

}  // namespace tamis
