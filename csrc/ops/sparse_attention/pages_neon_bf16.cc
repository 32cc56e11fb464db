// Attention over kv_page records on NEON with BF16: bfdot multiplies pairs of codes as bf16 by
// pairs of folded factors, rounded to bf16. 2- and 4-bit codes: a shift and the exponent of 128
// inserted around them, so bf16 128 + code, exactly; what the 128 adds is taken off for the rounded
// factors. 8-bit codes have no bit to spare: both converted to f32, upper halves merged. Per 8
// codes: 3 (8-bit: 7) instructions and one bfdot a row, where f32 takes 6 and two fmla a row.
#include "base/simd/lanes_neon.h"
#include "ops/sparse_attention/kernels.h"
#include "ops/sparse_attention/pages-inl.h"

namespace tamis {
namespace {

struct PairCodes {
  using Factor = uint16_t;
  static constexpr int kPer = 2;
  template <int kBits>
  static constexpr float kMiddle = kBits == 8 ? 0.0f : -128.0f;

  struct Codes {
    uint16x8_t low, high;
  };

  template <int kBits>
  static TAMIS_INLINE Codes codes(lanes::Words words, int step) {
    return {pairs<kBits>(words.low, kBits * step), pairs<kBits>(words.high, kBits * step)};
  }
  static TAMIS_INLINE simd::F32 multiply(const Codes& codes, const Factor* factors, simd::F32 sum) {
    uint32_t pair;
    __builtin_memcpy(&pair, factors, sizeof pair);
    const bfloat16x8_t both = vreinterpretq_bf16_u32(vdupq_n_u32(pair));
    return {vbfdotq_f32(sum.low, vreinterpretq_bf16_u16(codes.low), both),
            vbfdotq_f32(sum.high, vreinterpretq_bf16_u16(codes.high), both)};
  }
  static TAMIS_INLINE uint16x8_t rounded(simd::F32 v) {
    return vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(v.low), v.high));
  }
  static TAMIS_INLINE simd::F32 kept(simd::F32 v) { return simd::widen_bf16(rounded(v)); }
  static TAMIS_INLINE void put(simd::F32 v, Factor* out) { vst1q_u16(out, rounded(v)); }

 private:
  template <int kBits>
  static TAMIS_INLINE uint16x8_t pairs(uint32x4_t words, int shift) {
    const uint16x8_t halves =
        vshlq_u16(vreinterpretq_u16_u32(words), vdupq_n_s16(static_cast<int16_t>(-shift)));
    if constexpr (kBits < 8) {
      return vbslq_u16(vdupq_n_u16((1 << kBits) - 1), halves, vdupq_n_u16(0x4300));
    } else {
      const uint32x4_t both = vreinterpretq_u32_u16(vandq_u16(halves, vdupq_n_u16(0xff)));
      const float32x4_t even = vcvtq_f32_u32(vandq_u32(both, vdupq_n_u32(0xff)));
      const float32x4_t odd = vcvtq_f32_u32(vshrq_n_u32(both, 16));
      return vreinterpretq_u16_u32(
          vsriq_n_u32(vreinterpretq_u32_f32(odd), vreinterpretq_u32_f32(even), 16));
    }
  }
};

}  // namespace

TAMIS_PAGE_ATTENTION(PairCodes, neon_bf16)

}  // namespace tamis
