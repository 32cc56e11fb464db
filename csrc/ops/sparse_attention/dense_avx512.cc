// Attention over dense keys and values on avx512. bf16 goes 32 channels a load, whose even and odd
// ones become f32 by a shift and a mask: two instructions where widening halves takes four.
#include "base/simd/lanes_avx512.h"
#include "ops/sparse_attention/dense-inl.h"
#include "ops/sparse_attention/kernels.h"

namespace tamis {
namespace {

constexpr int64_t kPair = 32;  // channels of a load

// Within 32 channels q and the weighted sums hold the even ones, then the odd ones. A last half of
// 16 channels is as FloatUnit has it.
struct EvenOddUnit {
  using Element = BF16;
  using Plain = FloatUnit<BF16>;
  struct Query {
    alignas(64) float q[kMaxRows][kKvMaxHeadDim];
    int64_t d;
    TAMIS_INLINE Query(const float* source, int64_t rows, int64_t dim) : d(dim) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < d; c += kPair) {
          const simd::F32 low = simd::load(source + r * d + c);
          if (c + kPair > d) {
            lanes::store(low, q[r] + c);
            break;
          }
          const simd::F32 high = simd::load(source + r * d + c + simd::kLanes);
          const __m512i even = _mm512_load_si512(kEven), one = _mm512_set1_epi32(1);
          lanes::store(_mm512_permutex2var_ps(low, even, high), q[r] + c);
          lanes::store(_mm512_permutex2var_ps(low, _mm512_add_epi32(even, one), high),
                       q[r] + c + simd::kLanes);
        }
      }
    }
  };

  template <int R>
  static TAMIS_INLINE void scores(const Query& query, const BF16* const* rows,
                                  const BF16* const* next, int64_t t, Tile* tile) {
    lanes::F32 sum[R][kTokens];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) sum[r][i] = simd::zero();
    }
    int64_t c = 0;
    for (; c + kPair <= query.d; c += kPair) {
      lanes::F32 even[kTokens], odd[kTokens];
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) {
        split(rows[t + i] + c, &even[i], &odd[i]);
        prefetch(next[t + i] + c);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const lanes::F32 q = simd::load(query.q[r] + c);
        const lanes::F32 after = simd::load(query.q[r] + c + simd::kLanes);
#pragma GCC unroll 4
        for (int i = 0; i < kTokens; ++i) sum[r][i] = simd::fma(q, even[i], sum[r][i]);
#pragma GCC unroll 4
        for (int i = 0; i < kTokens; ++i) sum[r][i] = simd::fma(after, odd[i], sum[r][i]);
      }
    }
    if (c < query.d) {
      for (int i = 0; i < kTokens; ++i) {
        const lanes::F32 key = simd::load(rows[t + i] + c);
        prefetch(next[t + i] + c);
        for (int r = 0; r < R; ++r)
          sum[r][i] = simd::fma(simd::load(query.q[r] + c), key, sum[r][i]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) lanes::store_sums(sum[r], tile->p[r] + t);
  }

  template <int R>
  static TAMIS_INLINE void weigh(const BF16* const* rows, const BF16* const* next, int64_t d,
                                 const Tile& tile, AttentionState* s) {
    int64_t c = 0;
    for (; c + 2 * kPair <= d; c += 2 * kPair) weigh_at<R, 2>(rows, next, c, tile, s);
    for (; c + kPair <= d; c += kPair) weigh_at<R, 1>(rows, next, c, tile, s);
    if (c < d) Plain::weigh_at<R, 1>(rows, next, c, tile, s);
  }

  // The weighted sums in the order of channels.
  template <int R>
  static TAMIS_INLINE void finish(int64_t d, AttentionState* s) {
    alignas(64) static constexpr int32_t kLow[16] = {0, 16, 1, 17, 2, 18, 3, 19,
                                                     4, 20, 5, 21, 6, 22, 7, 23};
    const __m512i low = _mm512_load_si512(kLow);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (int r = 0; r < R; ++r) {
      for (int64_t c = 0; c + kPair <= d; c += kPair) {
        float* at = s->weighted[r] + c;
        const simd::F32 even = simd::load(at), odd = simd::load(at + simd::kLanes);
        lanes::store(_mm512_permutex2var_ps(even, low, odd), at);
        lanes::store(_mm512_permutex2var_ps(even, high, odd), at + simd::kLanes);
      }
    }
  }

 private:
  alignas(64) static constexpr int32_t kEven[16] = {0,  2,  4,  6,  8,  10, 12, 14,
                                                    16, 18, 20, 22, 24, 26, 28, 30};

  static TAMIS_INLINE void split(const BF16* p, lanes::F32* even, lanes::F32* odd) {
    const __m512i pairs = _mm512_loadu_si512(p);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    *odd = _mm512_castsi512_ps(
        _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  template <int R, int kPairs>
  static TAMIS_INLINE void weigh_at(const BF16* const* rows, const BF16* const* next, int64_t c,
                                    const Tile& tile, AttentionState* s) {
    lanes::F32 sum[R][2 * kPairs];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < 2 * kPairs; ++v) {
        sum[r][v] = simd::load(s->weighted[r] + c + v * simd::kLanes);
      }
    }
    for (int t = 0; t < kDenseTile; ++t) {
      lanes::F32 value[2 * kPairs];
#pragma GCC unroll 2
      for (int v = 0; v < kPairs; ++v) {
        split(rows[t] + c + v * kPair, &value[2 * v], &value[2 * v + 1]);
        prefetch(next[t] + c + v * kPair);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const lanes::F32 p = lanes::splat(tile.p[r][t]);
#pragma GCC unroll 4
        for (int v = 0; v < 2 * kPairs; ++v) sum[r][v] = simd::fma(p, value[v], sum[r][v]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < 2 * kPairs; ++v) {
        lanes::store(sum[r][v], s->weighted[r] + c + v * simd::kLanes);
      }
    }
  }
};

}  // namespace

TAMIS_DENSE_ATTENTION(f32, FloatUnit<float>, f32, avx512)
TAMIS_DENSE_ATTENTION(f16, FloatUnit<F16>, f32, avx512)
TAMIS_DENSE_ATTENTION(bf16, EvenOddUnit, f32, avx512)

}  // namespace tamis
