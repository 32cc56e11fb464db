// Decoding groupq rows on NEON: places by a table of 8 bits, four scales a conversion.
#pragma once

#include "base/simd/neon.h"
#include "ops/spmm/groupq_rows.h"

namespace tamis {
namespace {

// kBias: what a kernel subtracts from stored codes; scale * (kBias - zero) makes up for it.
template <int kBias>
struct DecodeNeon {
  static TAMIS_INLINE int64_t put_offsets(uint64_t bits, uint32_t first, uint32_t step,
                                          uint32_t* out) {
    uint32_t* to = out;
    for (; bits != 0; bits >>= 8, first += 8 * step) {
      const uint16x8_t places = vmovl_u8(vld1_u8(simd::kPositions.lane[bits & 0xff]));
      const uint32x4_t from = vdupq_n_u32(first), by = vdupq_n_u32(step);
      vst1q_u32(to, vmlaq_u32(from, vmovl_u16(vget_low_u16(places)), by));
      vst1q_u32(to + 4, vmlaq_u32(from, vmovl_high_u16(places), by));
      to += simd::popcount(bits & 0xff);
    }
    return to - out;
  }
  static TAMIS_INLINE void put_scales(const uint16_t* pairs, int64_t n, float* scale,
                                      float* offset) {
    for (int64_t i = 0; i < n; i += 4) {
      uint16_t last[8] = {};
      const uint16_t* from = pairs + 2 * i;
      if (n - i < 4) {
        for (int64_t j = 0; j < 2 * (n - i); ++j) last[j] = from[j];
        from = last;
      }
      const uint16x4x2_t both = vld2_u16(from);
      const float32x4_t s = vcvt_f32_f16(vreinterpret_f16_u16(both.val[0]));
      const float32x4_t z = vcvt_f32_f16(vreinterpret_f16_u16(both.val[1]));
      vst1q_f32(scale + i, s);
      vst1q_f32(offset + i, vmulq_f32(s, vsubq_f32(vdupq_n_f32(kBias), z)));
    }
  }
};

}  // namespace
}  // namespace tamis
