// Advanced SIMD primitives of the kernels: 8 f32 lanes in two registers. Same names as avx2.h, so
// that one loop serves both; AArch64 has 32 registers of 16 bytes where AVX2 has 16 of 32.
//
// tbl zeroes what its index does not reach, so a table indexed by 8 mask bits expands:
// | what        | instructions              | table                                        |
// | expand f32  | 2 x tbl over 32 bytes     | 32 B: bytes of each lane, 0xff where absent  |
// | expand bf16 | 2 x tbl                   | 32 B: bf16 to the high half of f32           |
// | expand f16  | tbl, fcvtl, fcvtl2        | 16 B: packed halves                          |
#pragma once

#include <arm_neon.h>

#include "base/simd/element.h"

namespace tamis::neon {
namespace {

// Not float32x4x2_t, whose members GCC keeps in neighbouring registers.
struct F32 {
  float32x4_t low, high;
};
inline constexpr int kLanes = 8;

TAMIS_INLINE F32 zero() {
  return {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
}
TAMIS_INLINE F32 splat(float v) {
  return {vdupq_n_f32(v), vdupq_n_f32(v)};
}
TAMIS_INLINE F32 add(F32 a, F32 b) {
  return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
}
TAMIS_INLINE F32 mul(F32 a, F32 b) {
  return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
}
TAMIS_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
template <int R>
struct Scalars;
template <>
struct Scalars<1> {
  float32x4_t lane;
#if defined(TAMIS_SIMDE)
  TAMIS_INLINE explicit Scalars(const float* p) : lane(vdupq_n_f32(*p)) {}
#else
  // GCC would take ld1r, which needs a port of fmla as well.
  TAMIS_INLINE explicit Scalars(const float* p) { asm("ldr %s0, %1" : "=w"(lane) : "m"(*p)); }
#endif
  TAMIS_INLINE F32 fma(int /*r*/, F32 x, F32 c) const {
    return {vfmaq_laneq_f32(c.low, x.low, lane, 0), vfmaq_laneq_f32(c.high, x.high, lane, 0)};
  }
};
// R neighbouring numbers to multiply vectors by: fmla takes a lane, which costs no load of its own.
template <int R>
struct Scalars {
  float32x4_t lanes[R > 4 ? R / 4 : 1];
  TAMIS_INLINE explicit Scalars(const float* p) {
    for (int i = 0; i < R / 4; ++i) lanes[i] = vld1q_f32(p + 4 * i);
    if (R == 2) lanes[0] = vcombine_f32(vld1_f32(p), vdup_n_f32(0.0f));
  }
  TAMIS_INLINE static float32x4_t by(float32x4_t c, float32x4_t x, float32x4_t w, int lane) {
    switch (lane) {
      case 0:
        return vfmaq_laneq_f32(c, x, w, 0);
      case 1:
        return vfmaq_laneq_f32(c, x, w, 1);
      case 2:
        return vfmaq_laneq_f32(c, x, w, 2);
      default:
        return vfmaq_laneq_f32(c, x, w, 3);
    }
  }
  TAMIS_INLINE F32 fma(int r, F32 x, F32 c) const {
    return {by(c.low, x.low, lanes[r / 4], r % 4), by(c.high, x.high, lanes[r / 4], r % 4)};
  }
};
TAMIS_INLINE float sum(F32 v) {
  return vaddvq_f32(vaddq_f32(v.low, v.high));
}

// Lane i = sum of v[i], i < N of 1, 2, 4 or 8; what the other lanes hold is not said.
TAMIS_INLINE float32x4_t add_halves(F32 v) {
  return vaddq_f32(v.low, v.high);
}
TAMIS_INLINE F32 sums(const F32 (&v)[1]) {
  return {vsetq_lane_f32(sum(v[0]), vdupq_n_f32(0.0f), 0), vdupq_n_f32(0.0f)};
}
TAMIS_INLINE F32 sums(const F32 (&v)[2]) {
  const float32x4_t ab = vpaddq_f32(add_halves(v[0]), add_halves(v[1]));
  return {vpaddq_f32(ab, ab), vdupq_n_f32(0.0f)};
}
TAMIS_INLINE float32x4_t quad(F32 a, F32 b, F32 c, F32 d) {
  return vpaddq_f32(vpaddq_f32(add_halves(a), add_halves(b)),
                    vpaddq_f32(add_halves(c), add_halves(d)));
}
TAMIS_INLINE F32 sums(const F32 (&v)[4]) {
  return {quad(v[0], v[1], v[2], v[3]), vdupq_n_f32(0.0f)};
}
TAMIS_INLINE F32 sums(const F32 (&v)[8]) {
  return {quad(v[0], v[1], v[2], v[3]), quad(v[4], v[5], v[6], v[7])};
}

struct CountTable {
  uint8_t ones[256];

  constexpr CountTable() : ones() {
    for (int bits = 0; bits < 256; ++bits) {
      ones[bits] = static_cast<uint8_t>((bits & 1) + ones[bits / 2]);
    }
  }
};
alignas(64) constexpr CountTable kCounts;

// A mask of 8 lanes, which the compiler sees, costs one load; cnt and addv take the ports that tbl
// and fmla want (Neoverse N1, bf16: 3.44 instead of 5.07 cycles per 8 weights by llvm-mca).
TAMIS_INLINE int popcount(uint64_t bits) {
  if (bits <= 0xff) return kCounts.ones[bits];
  return vaddv_u8(vcnt_u8(vcreate_u8(bits)));
}

// For each byte of mask bits: which lanes have a value, in order.
struct PositionTable {
  alignas(64) uint8_t lane[256][8];

  constexpr PositionTable() : lane() {
    for (int bits = 0; bits < 256; ++bits) {
      int count = 0;
      for (int i = 0; i < 8; ++i) {
        if (bits >> i & 1) lane[bits][count++] = static_cast<uint8_t>(i);
      }
    }
  }
};
constexpr PositionTable kPositions;

// For each byte of mask bits: where each lane's value is among the packed ones.
struct ExpandTable {
  alignas(64) uint8_t word[256][32];       // f32: byte shuffle within 32 packed bytes
  alignas(64) uint8_t high_half[256][32];  // bf16: within 16 packed bytes; 0xff zeroes
  alignas(64) uint8_t half[256][16];       // f16: the same, packed halves

  constexpr ExpandTable() : word(), high_half(), half() {
    for (int bits = 0; bits < 256; ++bits) {
      int from = 0;
      for (int lane = 0; lane < 8; ++lane) {
        const bool present = bits >> lane & 1;
        for (int byte = 0; byte < 4; ++byte) {
          word[bits][4 * lane + byte] = static_cast<uint8_t>(present ? 4 * from + byte : 0xff);
        }
        for (int byte = 0; byte < 2; ++byte) {
          const auto source = static_cast<uint8_t>(present ? 2 * from + byte : 0xff);
          high_half[bits][4 * lane + byte] = 0xff;
          high_half[bits][4 * lane + 2 + byte] = source;
          half[bits][2 * lane + byte] = source;
        }
        from += present;
      }
    }
  }
};
constexpr ExpandTable kExpand;

TAMIS_INLINE uint16x8_t load_halves(const void* p) {
  return vreinterpretq_u16_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
}
TAMIS_INLINE F32 widen_bf16(uint16x8_t v) {
  return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16)),
          vreinterpretq_f32_u32(vshll_high_n_u16(v, 16))};
}
TAMIS_INLINE F32 widen_f16(uint16x8_t v) {
  const float16x8_t h = vreinterpretq_f16_u16(v);
  return {vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)};
}

// kLanes elements.
TAMIS_INLINE F32 load(const float* p) {
  return {vld1q_f32(p), vld1q_f32(p + 4)};
}
TAMIS_INLINE F32 load(const BF16* p) {
  return widen_bf16(load_halves(p));
}
TAMIS_INLINE F32 load(const F16* p) {
  return widen_f16(load_halves(p));
}
TAMIS_INLINE F32 load(const int8_t* p) {
  const int16x8_t v = vmovl_s8(vld1_s8(p));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_high_s16(v))};
}

// The first n elements in a buffer of kLanes, zero after them.
template <class T>
struct Copy {
  TAMIS_INLINE Copy(const T* p, int n) {
    for (int i = 0; i < n; ++i) element[i] = p[i];
  }
  alignas(32) T element[kLanes] = {};
};

// The first n elements, n <= kLanes, nothing past them; zero elsewhere.
template <class T>
TAMIS_INLINE F32 load(const T* p, int n) {
  const Copy<T> copy(p, n);
  return load(copy.element);
}

TAMIS_INLINE F32 spread(uint32_t bits, const float* p) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(p);
  const uint8x16x2_t packed = {{vld1q_u8(bytes), vld1q_u8(bytes + 16)}};
  return {vreinterpretq_f32_u8(vqtbl2q_u8(packed, vld1q_u8(kExpand.word[bits]))),
          vreinterpretq_f32_u8(vqtbl2q_u8(packed, vld1q_u8(kExpand.word[bits] + 16)))};
}
TAMIS_INLINE F32 spread(uint32_t bits, const BF16* p) {
  const uint8x16_t packed = vreinterpretq_u8_u16(load_halves(p));
  return {vreinterpretq_f32_u8(vqtbl1q_u8(packed, vld1q_u8(kExpand.high_half[bits]))),
          vreinterpretq_f32_u8(vqtbl1q_u8(packed, vld1q_u8(kExpand.high_half[bits] + 16)))};
}
TAMIS_INLINE uint16x8_t spread_halves(uint32_t bits, const void* p) {
  return vreinterpretq_u16_u8(
      vqtbl1q_u8(vreinterpretq_u8_u16(load_halves(p)), vld1q_u8(kExpand.half[bits])));
}
TAMIS_INLINE F32 spread(uint32_t bits, const F16* p) {
  return widen_f16(spread_halves(bits, p));
}

// The packed values at p to the lanes whose bit is set, zero elsewhere. Reads kLanes elements; with
// kExact no more than popcount(bits).
inline constexpr int kReadsPast = kLanes;

template <bool kExact, class T>
TAMIS_INLINE F32 expand(uint32_t bits, const T* p) {
  if constexpr (!kExact) return spread(bits, p);
  const Copy<T> copy(p, popcount(bits));
  return spread(bits, copy.element);
}

// Four lanes, then zeros; or eight.
TAMIS_INLINE F32 join(const float32x4_t (&q)[1]) {
  return {q[0], vdupq_n_f32(0.0f)};
}
TAMIS_INLINE F32 join(const float32x4_t (&q)[2]) {
  return {q[0], q[1]};
}

// x[indices[i]], kLanes of them; or the first n <= kLanes, zero after them.
template <class T>
TAMIS_INLINE F32 gather(const T* x, const int32_t* indices, int n) {
  Copy<T> copy(x, 0);
  for (int i = 0; i < n; ++i) copy.element[i] = x[indices[i]];
  return load(copy.element);
}
// x[index(i)] of 8 lanes, loaded into them: going through memory, a wide load would wait for eight
// narrow stores.
template <class Index>
TAMIS_INLINE F32 pick(const float* x, const Index& index) {
  F32 v = zero();
  v.low = vld1q_lane_f32(x + index(0), v.low, 0);
  v.high = vld1q_lane_f32(x + index(4), v.high, 0);
  v.low = vld1q_lane_f32(x + index(1), v.low, 1);
  v.high = vld1q_lane_f32(x + index(5), v.high, 1);
  v.low = vld1q_lane_f32(x + index(2), v.low, 2);
  v.high = vld1q_lane_f32(x + index(6), v.high, 2);
  v.low = vld1q_lane_f32(x + index(3), v.low, 3);
  v.high = vld1q_lane_f32(x + index(7), v.high, 3);
  return v;
}
// Two halves of four, so that no chain is longer.
template <class Index>
TAMIS_INLINE uint16x8_t pick_halves(const uint16_t* x, const Index& index) {
  uint16x4_t low = vdup_n_u16(0), high = vdup_n_u16(0);
  low = vld1_lane_u16(x + index(0), low, 0);
  high = vld1_lane_u16(x + index(4), high, 0);
  low = vld1_lane_u16(x + index(1), low, 1);
  high = vld1_lane_u16(x + index(5), high, 1);
  low = vld1_lane_u16(x + index(2), low, 2);
  high = vld1_lane_u16(x + index(6), high, 2);
  low = vld1_lane_u16(x + index(3), low, 3);
  high = vld1_lane_u16(x + index(7), high, 3);
  return vcombine_u16(low, high);
}
template <class Index>
TAMIS_INLINE F32 pick(const BF16* x, const Index& index) {
  return widen_bf16(pick_halves(&x->bits, index));
}
template <class Index>
TAMIS_INLINE F32 pick(const F16* x, const Index& index) {
  return widen_f16(pick_halves(&x->bits, index));
}
template <class T>
TAMIS_INLINE F32 gather(const T* x, const int32_t* indices) {
  return pick(x, [indices](int i) __attribute__((always_inline)) { return indices[i]; });
}

TAMIS_INLINE float to_f32(float v) {
  return v;
}
TAMIS_INLINE float to_f32(F16 v) {
  return static_cast<float>(__builtin_bit_cast(__fp16, v.bits));
}
TAMIS_INLINE float to_f32(BF16 v) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(v.bits) << 16);
}

TAMIS_INLINE void store(float v, float* p) {
  *p = v;
}
TAMIS_INLINE void store(float v, F16* p) {
  p->bits = __builtin_bit_cast(uint16_t, static_cast<__fp16>(v));
}
TAMIS_INLINE void store(float v, BF16* p) {
  const auto u = __builtin_bit_cast(uint32_t, v);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>(v != v ? (u >> 16) | 0x40u : rounded);
}

TAMIS_INLINE void store(F32 v, float* p) {
  vst1q_f32(p, v.low);
  vst1q_f32(p + 4, v.high);
}
// The first n lanes, n <= kLanes, and nothing past them.
template <class T>
TAMIS_INLINE void store(F32 v, T* p, int n) {
  alignas(32) float lanes[kLanes];
  store(v, lanes);
  for (int i = 0; i < n; ++i) store(lanes[i], p + i);
}

}  // namespace
}  // namespace tamis::neon

namespace tamis {
namespace simd = neon;
}
