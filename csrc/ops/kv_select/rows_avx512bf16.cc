// Scores of bf16 rows for bf16 q on AVX-512 BF16: 32 products an instruction.
#include "base/simd/lanes_avx512.h"
#include "ops/kv_select/kernels.h"
#include "ops/kv_select/rows-inl.h"

namespace tamis {
namespace {

constexpr int kPair = 32;

TAMIS_INLINE __m512i load_pairs(const BF16* p, int64_t left) {
  if (left >= kPair) return _mm512_loadu_si512(p);
  return _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

template <class T, int R>
void score_pairs(const KvScorePart& a) {
  alignas(64) uint16_t q[R][kMaxWidth + 16];
  for (int r = 0; r < R; ++r) {
    for (int64_t c = 0; c < a.width; c += simd::kLanes) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(q[r] + c),
                          (__m256i)_mm512_cvtneps_pbh(simd::load(a.q + r * a.width + c)));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q[r] + a.width), _mm256_setzero_si256());
  }
  for_tiles<T, R>(a, [&](const T* const(&unit)[kTokens],
                         float (&out)[R][kTokens]) __attribute__((always_inline)) {
    simd::F32 sum[R][kTokens];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) sum[r][i] = simd::zero();
    }
    for (int64_t c = 0; c < a.width; c += kPair) {
      __m512i x[kTokens];
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) {
        x[i] = load_pairs(unit[i] + c, a.width - c);
        fetch_ahead(unit[i] + c, a);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m512i pair = _mm512_loadu_si512(q[r] + c);
#pragma GCC unroll 4
        for (int i = 0; i < kTokens; ++i) {
          sum[r][i] = _mm512_dpbf16_ps(sum[r][i], (__m512bh)pair, (__m512bh)x[i]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) lanes::store_sums(sum[r], out[r]);
  });
}

}  // namespace

void kv_select_rows_bf16_bf16_avx512bf16(const KvScorePart& a) {
  TAMIS_SCORE_BY_ROWS(score_pairs, BF16, a)
}

}  // namespace tamis
