// y[m,n] = sum_k x[m,k] * w[n,k].  w: CSR; accumulates f32 in simd::kLanes chains per token.
// Tile: 4 tokens per pass over a row, so that values and col_indices are read once per 4 outputs.
// Needs: col_indices within [0, k).   Tail: masked, < simd::kLanes values.
#pragma once

#include "base/simd/element.h"
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

template <class W, class X, int M>
void csr_pass(const SpmmArgs& a, int64_t row, int64_t row_end, int64_t token) {
  const auto* values = static_cast<const W*>(a.w.values);
  const auto* bias = static_cast<const X*>(a.bias);
  const auto* x = static_cast<const X*>(a.x) + token * a.x_stride;
  auto* y = static_cast<X*>(a.y) + token * a.y_stride;
  for (; row < row_end; ++row) {
    simd::F32 sum[M];
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) sum[t] = simd::zero();
    int64_t i = a.w.row_offsets[row];
    const int64_t end = a.w.row_offsets[row + 1];
    for (; i + simd::kLanes <= end; i += simd::kLanes) {
      const simd::F32 w = simd::load(values + i);
      const int32_t* at = a.w.col_indices + i;
#pragma GCC unroll 4
      for (int t = 0; t < M; ++t)
        sum[t] = simd::fma(w, simd::gather(x + t * a.x_stride, at), sum[t]);
    }
    if (i < end) {
      const int left = static_cast<int>(end - i);
      const simd::F32 w = simd::load(values + i, left);
      const int32_t* at = a.w.col_indices + i;
#pragma GCC unroll 4
      for (int t = 0; t < M; ++t) {
        sum[t] = simd::fma(w, simd::gather(x + t * a.x_stride, at, left), sum[t]);
      }
    }
    const float start = bias ? simd::to_f32(bias[row]) : 0.0f;
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) simd::store(simd::sum(sum[t]) + start, y + t * a.y_stride + row);
  }
}

template <class W, class X>
TAMIS_INLINE void spmm_csr(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  constexpr int64_t kTokens = 4;
  for (int64_t token = 0; token < a.m; token += kTokens) {
    switch (a.m - token) {
      case 1:
        csr_pass<W, X, 1>(a, row_begin, row_end, token);
        break;
      case 2:
        csr_pass<W, X, 2>(a, row_begin, row_end, token);
        break;
      case 3:
        csr_pass<W, X, 3>(a, row_begin, row_end, token);
        break;
      default:
        csr_pass<W, X, kTokens>(a, row_begin, row_end, token);
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_CSR_KERNEL(w, W, x, X, level)                                                  \
  void spmm_csr_##w##_##x##_##level(const SpmmArgs& a, int64_t row_begin, int64_t row_end) { \
    spmm_csr<W, X>(a, row_begin, row_end);                                                   \
  }
