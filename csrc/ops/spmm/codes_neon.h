// What the i8 kernels on NEON share: bytes expanded by table, and quantized x.
//
// A table indexed by 8 mask bits holds the tbl that spreads up to 8 packed bytes. Where the 8
// values of each mask byte begin comes from one cnt and one multiplication per 64 columns: the
// bytes of counts * 0x0101010101010101 are the sums of all counts up to them, so no chain of counts
// remains.
#pragma once

#include "base/simd/neon.h"
#include "ops/spmm/codes-inl.h"

namespace tamis {
namespace {

// For each byte of mask bits: which packed byte each lane takes.
struct ByteTable {
  alignas(64) uint8_t order[256][8];

  constexpr ByteTable() : order() {
    for (int bits = 0; bits < 256; ++bits) {
      int from = 0;
      for (int lane = 0; lane < 8; ++lane) {
        const bool present = bits >> lane & 1;
        order[bits][lane] = static_cast<uint8_t>(present ? from : 0xff);
        from += present;
      }
    }
  }
};
constexpr ByteTable kBytes;

TAMIS_INLINE int8x8_t spread_bytes(uint64_t bits, const int8_t* p) {
  return vtbl1_s8(vld1_s8(p), vreinterpret_s8_u8(vld1_u8(kBytes.order[bits & 0xff])));
}

// Two registers of sums: neighbouring 16 columns go to different ones.
struct CodeSum {
  int32x4_t part[2];
};

// Dot: how 16 weights and 16 codes are multiplied and added to 4 sums.
template <class Dot>
struct ExpandBytes {
  using Code = int8_t;
  using Sum = CodeSum;
  static constexpr int kReadsPast = 64;
  static constexpr int kMaxTokens = 4;
  static constexpr int rows(int) { return 2; }

  static TAMIS_INLINE Sum start(const int32_t*) { return {{vdupq_n_s32(0), vdupq_n_s32(0)}}; }
  // sum[i][t] += 64 columns of row i times token t; at[i] moves on.
  template <bool kExact, int R, int M>
  static TAMIS_INLINE void multiply(Sum (&sum)[R][M], const int8_t* (&at)[R],
                                    const uint64_t (&bits)[R], const Code* x) {
    alignas(16) int8_t copy[R][64];
    const int8_t* p[R];
    uint64_t ends[R];  // byte j: values of mask bytes 0 to j
#pragma GCC unroll 2
    for (int i = 0; i < R; ++i) {
      const uint64_t counts = vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(bits[i]))), 0);
      ends[i] = counts * 0x0101010101010101u;
      p[i] = at[i];
      const auto count = static_cast<int>(ends[i] >> 56);
      if (kExact) {  // every load below takes 8 bytes, wherever it is
        for (int b = 0; b < 64; ++b) copy[i][b] = b < count ? at[i][b] : int8_t{0};
        p[i] = copy[i];
      }
      at[i] += count;
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      // Else GCC takes the fields of four words first, into more registers than there are.
      __asm__ volatile("" ::: "memory");
      int8x8_t low[R], high[R];
#pragma GCC unroll 2
      for (int i = 0; i < R; ++i) {
        const uint64_t before = j ? ends[i] >> (16 * j - 8) & 0xff : 0;
        low[i] = spread_bytes(bits[i] >> (16 * j), p[i] + before);
        high[i] = spread_bytes(bits[i] >> (16 * j + 8), p[i] + (ends[i] >> (16 * j) & 0xff));
      }
#pragma GCC unroll 4
      for (int t = 0; t < M; ++t) {
        const int8x16_t tokens = vld1q_s8(x + t * 64 + j * 16);
#pragma GCC unroll 2
        for (int i = 0; i < R; ++i) {
          int32x4_t& part = sum[i][t].part[j % 2];
          part = Dot::add(part, low[i], high[i], tokens);
        }
      }
    }
  }
  static TAMIS_INLINE simd::F32 to_f32(const Sum& sum) {
    return {vcvtq_f32_s32(sum.part[0]), vcvtq_f32_s32(sum.part[1])};
  }
};

inline constexpr float kTiny = 0x1p-100f;  // below it 127 / largest may not be finite

// Codes of the n <= kStepColumns columns at x, zeros after them; returns their step.
template <class X>
TAMIS_INLINE float quantize(const X* x, int64_t n, int8_t* codes) {
  const auto columns = [x, n](int64_t i) __attribute__((always_inline)) {
    return i + 8 <= n ? simd::load(x + i)
                      : simd::load(x + (i < n ? i : 0), static_cast<int>(i < n ? n - i : 0));
  };
  // Bit patterns of magnitudes order as the magnitudes do, with NaN above Inf.
  uint32x4_t most = vdupq_n_u32(0);
  const uint32x4_t magnitude = vdupq_n_u32(0x7fffffffu);
  for (int64_t i = 0; i < n; i += 8) {
    const simd::F32 v = columns(i);
    most = vmaxq_u32(most, vandq_u32(vreinterpretq_u32_f32(v.low), magnitude));
    most = vmaxq_u32(most, vandq_u32(vreinterpretq_u32_f32(v.high), magnitude));
  }
  const uint32_t bits = vmaxvq_u32(most);
  const float largest = __builtin_bit_cast(float, bits);
  const bool finite = bits < 0x7f800000u;
  const float grow = largest < kTiny ? 0x1p100f : 1.0f;
  const float factor = finite && bits != 0 ? 127.0f / (largest * grow) : 0.0f;
  for (int64_t i = 0; i < kStepColumns; i += 8) {
    const simd::F32 v = simd::mul(simd::mul(columns(i), simd::splat(grow)), simd::splat(factor));
    const int16x8_t both =
        vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(v.low)), vqmovn_s32(vcvtnq_s32_f32(v.high)));
    vst1_s8(codes + i, vqmovn_s16(both));
  }
  return finite ? largest / 127.0f : __builtin_nanf("");
}

// Steps [part / parts) of all tokens.
template <class X>
void prepare_codes(const SpmmArgs& a, void* prepared, int part, int parts) {
  const XCodes<int8_t> to(a, prepared);
  const int64_t words = mask_words(a.w.cols), steps = step_count(a.w);
  for (int64_t s = steps * part / parts; s < steps * (part + 1) / parts; ++s) {
    const int64_t first = s * kStepColumns, word = first / 64;
    const int64_t n = a.w.cols - first < kStepColumns ? a.w.cols - first : kStepColumns;
    for (int64_t t = 0; t < a.m; ++t) {
      alignas(64) int8_t codes[kStepColumns];
      const X* x = static_cast<const X*>(a.x) + t * a.x_stride + first;
      to.steps[s * a.m + t] = quantize(x, n, codes);
      for (int64_t w = 0; w < kStepColumns / 64 && word + w < words; ++w) {
        __builtin_memcpy(to.codes + ((word + w) * a.m + t) * 64, codes + w * 64, 64);
      }
    }
  }
}

TAMIS_INLINE int64_t codes_bytes(const SpmmArgs& a) {
  return XCodes<int8_t>(a, nullptr).bytes;
}

}  // namespace
}  // namespace tamis

#define TAMIS_NEON_CODES(level, Dot)                                                  \
  const SpmmXForm spmm_codes_f32_##level = {codes_bytes, prepare_codes<float>, true}; \
  const SpmmXForm spmm_codes_f16_##level = {codes_bytes, prepare_codes<F16>, true};   \
  const SpmmXForm spmm_codes_bf16_##level = {codes_bytes, prepare_codes<BF16>, true}; \
  TAMIS_CODES_KERNEL(f32, level, ExpandBytes<Dot>)                                    \
  TAMIS_CODES_KERNEL(f16, level, ExpandBytes<Dot>)                                    \
  TAMIS_CODES_KERNEL(bf16, level, ExpandBytes<Dot>)
