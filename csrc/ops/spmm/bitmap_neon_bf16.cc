// bitmap and nm of bf16 on NEON with BF16: 8 columns per step by one tbl and one bfdot, which takes
// denormal inputs as zero, flushes denormal sums and rounds to odd.
#include "ops/spmm/bitmap_neon.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

struct ExpandDot {
  using W = BF16;
  using X = BF16;
  using Weights = uint16x8_t;
  using Tokens = uint16x8_t;
  using Starts = HalfStarts;
  using Sum = simd::F32;  // the lower half
  static constexpr int kColumns = 8;
  static constexpr int kReadsPast = kColumns;
  static constexpr int kMaxTokens = 4;
  static constexpr int rows(int) { return 4; }

  static TAMIS_INLINE Tokens load(const X* p) { return simd::load_halves(p); }
  static TAMIS_INLINE Tokens load(const X* p, int n) {
    const simd::Copy<X> copy(p, n);
    return simd::load_halves(copy.element);
  }
  template <bool kExact>
  static TAMIS_INLINE Weights expand(uint64_t bits, const W* p) {
    const auto mine = static_cast<uint32_t>(bits);
    if constexpr (!kExact) return simd::spread_halves(mine, p);
    const simd::Copy<W> copy(p, simd::popcount(mine));
    return simd::spread_halves(mine, copy.element);
  }
  static TAMIS_INLINE Weights expand_at(uint64_t bits, int s, const Starts& starts,
                                        const W* values) {
    const auto mine = static_cast<uint32_t>(bits >> (8 * s) & 0xff);
    return simd::spread_halves(mine, starts.at(values, s));
  }
  static TAMIS_INLINE Sum dot(Sum sum, Weights w, Tokens x) {
    return {vbfdotq_f32(sum.low, vreinterpretq_bf16_u16(w), vreinterpretq_bf16_u16(x)), sum.high};
  }
};

}  // namespace

TAMIS_MASKED_KERNEL(bf16, bf16, neon_bf16, ExpandDot)

}  // namespace tamis
