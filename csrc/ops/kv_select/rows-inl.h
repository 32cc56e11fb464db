// out[r,u] = scale * q[r] . x[u] for rows x of f32, f16 or bf16 [units, width].
// Tile: 4 rows of q times kTokens units, channels in lanes, transposed sums.
// Needs: width a multiple of 16, rows of contiguous elements.   Tail: repeats the last unit.
// Units follow each other; on NEON that is left to the hardware, whose loops are counted.
//
// Included after a base/simd/lanes_<isa>.h.
#pragma once

#include "ops/kv_select/kv_select.h"

namespace tamis {
namespace {

inline constexpr int kTokens = simd::kLanes == 16 ? 4 : simd::kLanes == 8 ? 2 : 1;

// The same place some units on, into L2: the hardware follows neither turns between kTokens streams
// nor the ends of small pages (bounds of 16k tokens on Emerald Rapids: 0.54 to 0.29 ms).
template <class T>
TAMIS_INLINE void fetch_ahead(const T* at, const KvScorePart& a) {
#if defined(__x86_64__)
  constexpr int64_t kUnits = 8;
  __builtin_prefetch(at + kUnits * a.unit_stride, 0, 2);
#endif
}

template <class T, int R>
TAMIS_INLINE void score_tile(const KvScorePart& a, const T* const (&unit)[kTokens],
                             float (&out)[R][kTokens]) {
  lanes::F32 sum[R][kTokens];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kTokens; ++i) sum[r][i] = simd::zero();
  }
  for (int64_t c = 0; c < a.width; c += simd::kLanes) {
    lanes::F32 x[kTokens];
#pragma GCC unroll 4
    for (int i = 0; i < kTokens; ++i) {
      x[i] = simd::load(unit[i] + c);
      fetch_ahead(unit[i] + c, a);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const lanes::F32 q = simd::load(a.q + r * a.width + c);
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) sum[r][i] = simd::fma(q, x[i], sum[r][i]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) lanes::store_sums(sum[r], out[r]);
}

// Calls tile(units, out) for kTokens units at a time and keeps what lies before a.end.
template <class T, int R, class TileOf>
TAMIS_INLINE void for_tiles(const KvScorePart& a, const TileOf& tile) {
  for (int64_t u = a.begin; u < a.end; u += kTokens) {
    const T* unit[kTokens];
    float out[R][kTokens];
#pragma GCC unroll 4
    for (int i = 0; i < kTokens; ++i) {
      const int64_t at = u + i < a.end ? u + i : a.end - 1;
      unit[i] = static_cast<const T*>(a.x) + at * a.unit_stride;
    }
    tile(unit, out);
    const int64_t count = a.end - u < kTokens ? a.end - u : kTokens;
    for (int r = 0; r < R; ++r) {
      float* to = a.out + r * a.out_stride + u - a.begin;
      if (count == kTokens) {
        for (int i = 0; i < kTokens; ++i) to[i] = a.scale * out[r][i];
      } else {
        for (int64_t i = 0; i < count; ++i) to[i] = a.scale * out[r][i];
      }
    }
  }
}

template <class T, int R>
void score_rows(const KvScorePart& a) {
  for_tiles<T, R>(a, [&](const T* const(&unit)[kTokens], float (&out)[R][kTokens])
                         __attribute__((always_inline)) { score_tile<T, R>(a, unit, out); });
}

}  // namespace
}  // namespace tamis

// Calls run<T, R> for the number of rows.
#define TAMIS_SCORE_BY_ROWS(function, T, a) \
  switch ((a).rows) {                       \
    case 1:                                 \
      return function<T, 1>(a);             \
    case 2:                                 \
      return function<T, 2>(a);             \
    case 3:                                 \
      return function<T, 3>(a);             \
    default:                                \
      return function<T, kSelectRows>(a);   \
  }

#define TAMIS_SCORE_ROWS(dtype, T, level)                           \
  void kv_select_rows_##dtype##_f32_##level(const KvScorePart& a) { \
    TAMIS_SCORE_BY_ROWS(score_rows, T, a)                           \
  }
