// groupq on NEON: per 16 weights four widening moves, four conversions and four fmla make them,
// four fmla a token take them.
#include "ops/spmm/groupq_neon.h"

#include "ops/spmm/groupq-inl.h"
#include "ops/spmm/kernels.h"

namespace tamis {
namespace {

struct LevelNeon {
  static constexpr bool kTransposed = false;

  static TAMIS_INLINE void widen(uint8x16_t codes, float scale, float offset, simd::F32* w) {
    const simd::F32 s = simd::splat(scale), o = simd::splat(offset);
    const uint16x8_t low = vmovl_u8(vget_low_u8(codes)), high = vmovl_high_u8(codes);
    w[0] = simd::fma(
        {vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_high_u16(low))}, s, o);
    w[1] = simd::fma(
        {vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_high_u16(high))}, s, o);
  }

  template <int G>
  struct U4 {
    using Decode = DecodeNeon<0>;
    static constexpr int kColumns = G, kBytes = G / 2;

    static TAMIS_INLINE void weights(const uint8_t* p, float scale, float offset,
                                     simd::F32 (&w)[G / 8]) {
      if constexpr (G == 16) {
        const uint8x8_t bytes = vld1_u8(p);
        widen(vcombine_u8(vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8(bytes, 4)), scale, offset, w);
      } else {
        const uint8x16_t bytes = vld1q_u8(p);
        widen(vandq_u8(bytes, vdupq_n_u8(15)), scale, offset, w);
        widen(vshrq_n_u8(bytes, 4), scale, offset, w + 2);
      }
    }
  };

  template <int G>
  struct U8 {
    using Decode = DecodeNeon<0>;
    static constexpr int kColumns = G, kBytes = G;

    static TAMIS_INLINE void weights(const uint8_t* p, float scale, float offset,
                                     simd::F32 (&w)[G / 8]) {
#pragma GCC unroll 2
      for (int j = 0; j < G / 16; ++j) widen(vld1q_u8(p + 16 * j), scale, offset, w + 2 * j);
    }
  };
};

}  // namespace

TAMIS_GROUPQ_KERNELS(neon, LevelNeon)

}  // namespace tamis
