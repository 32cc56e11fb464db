// Scores of bf16 rows for bf16 q on NEON with BF16: 8 products an instruction.
#include "base/simd/lanes_neon.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/rows-inl.h"

namespace tamis {
namespace {

constexpr int kPair = 8;

TAMIS_INLINE bfloat16x8_t load_pairs(const void* p) {
  return vreinterpretq_bf16_u16(simd::load_halves(p));
}

template <class T, int R>
void score_pairs(const KvScorePart& a) {
  alignas(64) uint16_t q[R][kMaxWidth];
  for (int r = 0; r < R; ++r) {
    for (int64_t c = 0; c < a.width; c += kPair) {
      const simd::F32 v = simd::load(a.q + r * a.width + c);
      const bfloat16x8_t pairs = vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(v.low), v.high);
      vst1q_u16(q[r] + c, vreinterpretq_u16_bf16(pairs));
    }
  }
  for_tiles<T, R>(a, [&](const T* const(&unit)[kTokens],
                         float (&out)[R][kTokens]) __attribute__((always_inline)) {
    simd::F32 sum[R][kTokens];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) sum[r][i] = simd::zero();
    }
    for (int64_t c = 0; c < a.width; c += 2 * kPair) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const bfloat16x8_t low = load_pairs(q[r] + c), high = load_pairs(q[r] + c + kPair);
#pragma GCC unroll 4
        for (int i = 0; i < kTokens; ++i) {
          sum[r][i].low = vbfdotq_f32(sum[r][i].low, low, load_pairs(unit[i] + c));
          sum[r][i].high = vbfdotq_f32(sum[r][i].high, high, load_pairs(unit[i] + c + kPair));
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) lanes::store_sums(sum[r], out[r]);
  });
}

}  // namespace

void kv_select_rows_bf16_bf16_neon_bf16(const KvScorePart& a) {
  TAMIS_SCORE_BY_ROWS(score_pairs, BF16, a)
}

}  // namespace tamis
