// Sums of weighted rows: the columns of a tile lie in lanes, several rows of w are added at a time.
// Tile: 2048 columns of sums for one token (8 KB, a quarter of the smallest L1), as many sums for
// more; kRows rows in flight, so that sums are loaded and stored once for all of them.
// Each load is paired with a prefetch of the same place in the rows that follow: which they are is
// known, but no hardware prefetcher can guess a list.
// Needs: rows of `stride` elements.   Tail: the last row repeated with factor zero would multiply a
// NaN; so the rest of the rows go one by one, and the rest of the columns by partial vectors.
//
// Included after a base/simd/lanes_<isa>.h.
#pragma once

#include "ops/sparse_input/sparse_input.h"

namespace tamis {
namespace {

inline constexpr int64_t kSumTile = 2048;

template <class T>
struct Lines {
  static constexpr int kElements = 64 / static_cast<int>(sizeof(T));
};

// Columns [begin, end) of rows i .. i + R of the list; `next` is R rows that will be read after.
template <int R, int M, class T>
TAMIS_INLINE void add_rows(const RowSum& a, int64_t i, const T* const* next, int64_t begin,
                           int64_t end) {
  const T* w[R];
  lanes::F32 factor[R][M];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    w[r] = static_cast<const T*>(a.w) + a.rows.ids[i + r] * a.stride;
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) factor[r][t] = lanes::splat(a.rows.factors[(i + r) * M + t]);
  }
  constexpr int kStep = simd::kLanes > Lines<T>::kElements ? simd::kLanes : Lines<T>::kElements;
  int64_t c = begin;
  for (; c + kStep <= end; c += kStep) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) __builtin_prefetch(next[r] + c, 0, 2);
#pragma GCC unroll 8
    for (int v = 0; v < kStep; v += simd::kLanes) {
      lanes::F32 sum[M];
#pragma GCC unroll 4
      for (int t = 0; t < M; ++t) sum[t] = simd::load(a.sum + t * a.sum_stride + c + v);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const lanes::F32 row = simd::load(w[r] + c + v);
#pragma GCC unroll 4
        for (int t = 0; t < M; ++t) sum[t] = simd::fma(factor[r][t], row, sum[t]);
      }
#pragma GCC unroll 4
      for (int t = 0; t < M; ++t) lanes::store(sum[t], a.sum + t * a.sum_stride + c + v);
    }
  }
  for (; c < end; c += simd::kLanes) {
    const int n = static_cast<int>(end - c < simd::kLanes ? end - c : simd::kLanes);
    for (int r = 0; r < R; ++r) {
      const lanes::F32 row = simd::load(w[r] + c, n);
      for (int t = 0; t < M; ++t) {
        float* sum = a.sum + t * a.sum_stride + c;
        simd::store(simd::fma(factor[r][t], row, simd::load(sum, n)), sum, n);
      }
    }
  }
}

template <int M, class T>
void sum_tile(const RowSum& a, int64_t begin, int64_t end) {
  constexpr int kRows = M == 1 ? 8 : 4;
  const auto row = [&](int64_t i) {
    const int64_t at = i < a.rows.count ? i : a.rows.count - 1;
    return static_cast<const T*>(a.w) + a.rows.ids[at] * a.stride;
  };
  int64_t i = 0;
  const T* next[kRows];
  for (; i + kRows <= a.rows.count; i += kRows) {
    for (int r = 0; r < kRows; ++r) next[r] = row(i + kRows + r);
    add_rows<kRows, M, T>(a, i, next, begin, end);
  }
  for (; i < a.rows.count; ++i) {
    next[0] = row(i + 1);
    add_rows<1, M, T>(a, i, next, begin, end);
  }
}

template <class T>
TAMIS_INLINE void row_sum(const RowSum& a) {
  const int64_t tile = kSumTile / a.tokens;
  for (int64_t begin = a.begin; begin < a.end; begin += tile) {
    const int64_t end = begin + tile < a.end ? begin + tile : a.end;
    switch (a.tokens) {
      case 1:
        sum_tile<1, T>(a, begin, end);
        break;
      case 2:
        sum_tile<2, T>(a, begin, end);
        break;
      case 3:
        sum_tile<3, T>(a, begin, end);
        break;
      default:
        sum_tile<4, T>(a, begin, end);
    }
  }
}

}  // namespace
}  // namespace tamis
