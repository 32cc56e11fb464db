// Attention over dense bf16 keys and values for bf16 queries on AVX-512 BF16: products of pairs by
// vdpbf16ps, the weights rounded to bf16. Values of two tokens are interleaved on the way.
#include "base/simd/lanes_avx512.h"
#include "ops/sparse_attention/dense-inl.h"
#include "ops/sparse_attention/kernels.h"

namespace tamis {
namespace {

constexpr int kPair = 32;  // elements of a vector

TAMIS_INLINE __m512i load_bf16(const BF16* p, int64_t left) {
  if (left >= kPair) return _mm512_loadu_si512(p);
  return _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

TAMIS_INLINE simd::F32 multiply(__m512i a, __m512i b, simd::F32 sum) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

TAMIS_INLINE void put_bf16(simd::F32 v, uint16_t* out) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), (__m256i)_mm512_cvtneps_pbh(v));
}

struct Bf16Unit {
  using Element = BF16;
  struct Query {
    alignas(64) uint16_t q[kMaxRows][kKvMaxHeadDim + 16];
    int64_t d;
    TAMIS_INLINE Query(const float* source, int64_t rows, int64_t dim) : d(dim) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < d; c += simd::kLanes) {
          put_bf16(simd::load(source + r * d + c), q[r] + c);
        }
        put_bf16(simd::zero(), q[r] + d);
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
    for (int64_t c = 0; c < query.d; c += kPair) {
      __m512i key[kTokens];
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) {
        key[i] = load_bf16(rows[t + i] + c, query.d - c);
        prefetch(next[t + i] + c);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m512i q = _mm512_loadu_si512(query.q[r] + c);
#pragma GCC unroll 4
        for (int i = 0; i < kTokens; ++i) sum[r][i] = multiply(q, key[i], sum[r][i]);
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
      put_bf16(simd::load(tile.p[r]), p[r]);
    }
    for (int64_t c = 0; c < d; c += kPair) weigh_at<R>(rows, next, c, d - c, p, s);
  }

  template <int R>
  static TAMIS_INLINE void weigh_at(const BF16* const* rows, const BF16* const* next, int64_t c,
                                    int64_t left, const uint16_t (&p)[R][kDenseTile],
                                    AttentionState* s) {
    alignas(64) static constexpr uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                      37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                      11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_load_si512(kLow);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    simd::F32 sum[R][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      sum[r][0] = simd::load(s->weighted[r] + c);
      sum[r][1] = left >= kPair ? simd::load(s->weighted[r] + c + 16) : simd::zero();
    }
    for (int t = 0; t < kDenseTile; t += 2) {
      prefetch(next[t] + c);
      prefetch(next[t + 1] + c);
      const __m512i even = load_bf16(rows[t] + c, left), odd = load_bf16(rows[t + 1] + c, left);
      const __m512i first = _mm512_permutex2var_epi16(even, low, odd);
      const __m512i second = _mm512_permutex2var_epi16(even, high, odd);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        int pair;
        __builtin_memcpy(&pair, p[r] + t, sizeof pair);
        const __m512i weights = _mm512_set1_epi32(pair);
        sum[r][0] = multiply(first, weights, sum[r][0]);
        sum[r][1] = multiply(second, weights, sum[r][1]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      lanes::store(sum[r][0], s->weighted[r] + c);
      if (left >= kPair) lanes::store(sum[r][1], s->weighted[r] + c + 16);
    }
  }
};

}  // namespace

TAMIS_DENSE_ATTENTION(bf16, Bf16Unit, bf16, avx512bf16)

}  // namespace tamis
