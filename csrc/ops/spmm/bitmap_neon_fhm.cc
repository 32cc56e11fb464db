// bitmap and nm of f16 on NEON with FHM: 8 columns per step by one tbl, fmlal and fmlal2, whose
// products are exact in f32.
#include "ops/spmm/bitmap_neon.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

struct ExpandLong {
  using W = F16;
  using X = F16;
  using Weights = float16x8_t;
  using Tokens = float16x8_t;
  using Starts = HalfStarts;
  using Sum = simd::F32;
  static constexpr int kColumns = 8;
  static constexpr int kReadsPast = kColumns;
  static constexpr int kMaxTokens = 4;
  static constexpr int rows(int tokens) { return tokens <= 2 ? 4 : 2; }

  static TAMIS_INLINE Tokens load(const X* p) {
    return vreinterpretq_f16_u16(simd::load_halves(p));
  }
  static TAMIS_INLINE Tokens load(const X* p, int n) {
    const simd::Copy<X> copy(p, n);
    return load(copy.element);
  }
  template <bool kExact>
  static TAMIS_INLINE Weights expand(uint64_t bits, const W* p) {
    const auto mine = static_cast<uint32_t>(bits);
    if constexpr (!kExact) return vreinterpretq_f16_u16(simd::spread_halves(mine, p));
    const simd::Copy<W> copy(p, simd::popcount(mine));
    return vreinterpretq_f16_u16(simd::spread_halves(mine, copy.element));
  }
  static TAMIS_INLINE Weights expand_at(uint64_t bits, int s, const Starts& starts,
                                        const W* values) {
    const auto mine = static_cast<uint32_t>(bits >> (8 * s) & 0xff);
    return vreinterpretq_f16_u16(simd::spread_halves(mine, starts.at(values, s)));
  }
  static TAMIS_INLINE Sum dot(Sum sum, Weights w, Tokens x) {
    return {vfmlalq_low_f16(sum.low, w, x), vfmlalq_high_f16(sum.high, w, x)};
  }
};

}  // namespace

TAMIS_MASKED_KERNEL(f16, f16, neon_fhm, ExpandLong)

}  // namespace tamis
