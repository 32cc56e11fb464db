// Attention over dense bf16 keys and values for bf16 queries on NEON with BF16: products of pairs
// by bfdot, the weights rounded to bf16. Values of two tokens are interleaved on the way.
#include "base/simd/lanes_neon.h"
#include "ops/sparse_attention/dense-inl.h"
#include "ops/sparse_attention/kernels.h"

namespace tamis {
namespace {

constexpr int kPair = 8;  // elements of a vector

TAMIS_INLINE bfloat16x8_t load_bf16(const void* p) {
  return vreinterpretq_bf16_u16(simd::load_halves(p));
}
TAMIS_INLINE bfloat16x8_t to_bf16(simd::F32 v) {
  return vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(v.low), v.high);
}
TAMIS_INLINE void put_bf16(simd::F32 v, uint16_t* out) {
  vst1q_u16(out, vreinterpretq_u16_bf16(to_bf16(v)));
}

struct Bf16Unit {
  using Element = BF16;
  struct Query {
    alignas(64) uint16_t q[kMaxRows][kKvMaxHeadDim];
    int64_t d;
    TAMIS_INLINE Query(const float* source, int64_t rows, int64_t dim) : d(dim) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < d; c += kPair) put_bf16(simd::load(source + r * d + c), q[r] + c);
      }
    }
  };

  template <int R>
  static TAMIS_INLINE void scores(const Query& query, const BF16* const* rows,
                                  const BF16* const* next, int64_t t, Tile* tile) {
    simd::F32 sum[R][kTokens];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) sum[r][i] = simd::zero();
    }
    for (int64_t c = 0; c < query.d; c += 2 * kPair) {
      bfloat16x8_t low[kTokens], high[kTokens];
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) {
        low[i] = load_bf16(rows[t + i] + c);
        high[i] = load_bf16(rows[t + i] + c + kPair);
        prefetch(next[t + i] + c);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const bfloat16x8_t first = load_bf16(query.q[r] + c);
        const bfloat16x8_t second = load_bf16(query.q[r] + c + kPair);
#pragma GCC unroll 4
        for (int i = 0; i < kTokens; ++i) {
          sum[r][i].low = vbfdotq_f32(sum[r][i].low, first, low[i]);
          sum[r][i].high = vbfdotq_f32(sum[r][i].high, second, high[i]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) lanes::store_sums(sum[r], tile->p[r] + t);
  }

  template <int R>
  static TAMIS_INLINE void weigh(const BF16* const* rows, const BF16* const* next, int64_t d,
                                 const Tile& tile, AttentionState* s) {
    alignas(64) uint16_t p[R][kDenseTile];
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < kDenseTile; t += kPair) put_bf16(simd::load(tile.p[r] + t), p[r] + t);
    }
    for (int64_t c = 0; c < d; c += 2 * kPair) weigh_at<R>(rows, next, c, p, s);
  }

  // 16 channels: four registers of sums a row.
  template <int R>
  static TAMIS_INLINE void weigh_at(const BF16* const* rows, const BF16* const* next, int64_t c,
                                    const uint16_t (&p)[R][kDenseTile], AttentionState* s) {
    float32x4_t sum[R][4];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sum[r][v] = vld1q_f32(s->weighted[r] + c + 4 * v);
    }
    for (int t = 0; t < kDenseTile; t += 2) {
      prefetch(next[t] + c);
      prefetch(next[t + 1] + c);
      bfloat16x8_t pair[4];
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const uint16x8_t even = simd::load_halves(rows[t] + c + h * kPair);
        const uint16x8_t odd = simd::load_halves(rows[t + 1] + c + h * kPair);
        pair[2 * h] = vreinterpretq_bf16_u16(vzip1q_u16(even, odd));
        pair[2 * h + 1] = vreinterpretq_bf16_u16(vzip2q_u16(even, odd));
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        uint32_t both;
        __builtin_memcpy(&both, p[r] + t, sizeof both);
        const bfloat16x8_t weights = vreinterpretq_bf16_u32(vdupq_n_u32(both));
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) sum[r][v] = vbfdotq_f32(sum[r][v], pair[v], weights);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) vst1q_f32(s->weighted[r] + c + 4 * v, sum[r][v]);
    }
  }
};

}  // namespace

TAMIS_DENSE_ATTENTION(bf16, Bf16Unit, bf16, neon_bf16)

}  // namespace tamis
