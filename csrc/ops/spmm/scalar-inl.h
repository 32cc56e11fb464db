// y[m,n] = sum_k x[m,k] * w[n,k], portable: visits the stored values of a row once per 4 tokens.
// A format supplies Rows::visit(w, row, f), which calls f(value index, column) in column order.
// Tile: 4 tokens, so that columns are decoded once per 4 outputs.
// Needs: nothing beyond SpmmArgs.   Tail: the last tile has fewer tokens.
#pragma once

#include "base/simd/scalar.h"
#include "ops/spmm/spmm.h"

namespace tamis::scalar {
namespace {

inline constexpr int kTokens = 4;

// Scale of the group that a column falls into; columns must come in ascending order.
template <class W>
struct Scale {
  Scale(const MatrixView&, int64_t) {}
  float operator()(int64_t) { return 1.0f; }
};
template <>
struct Scale<int8_t> {
  Scale(const MatrixView& w, int64_t row)
      : next(w.scales + row * ceil_div(w.cols, w.group_size)), size(w.group_size) {}
  float operator()(int64_t column) {
    for (; column >= end; end += size) scale = *next++;
    return scale;
  }
  const float* next;
  int64_t size, end = 0;
  float scale = 0;
};

template <class Rows, class W, class X>
void spmm_rows(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const auto* values = static_cast<const W*>(a.w.values);
  const auto* bias = static_cast<const X*>(a.bias);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float start = bias ? to_f32(bias[row]) : 0.0f;
    for (int64_t token = 0; token < a.m; token += kTokens) {
      const auto* x = static_cast<const X*>(a.x) + token * a.x_stride;
      auto* y = static_cast<X*>(a.y) + token * a.y_stride + row;
      const int tokens = a.m - token < kTokens ? static_cast<int>(a.m - token) : kTokens;
      float sum[kTokens] = {};
      Scale<W> scale(a.w, row);
      Rows::visit(a.w, row, [&](int64_t i, int64_t column) {
        const float w = scale(column) * to_f32(values[i]);
        for (int t = 0; t < tokens; ++t) sum[t] += w * to_f32(x[t * a.x_stride + column]);
      });
      for (int t = 0; t < tokens; ++t) store(sum[t] + start, y + t * a.y_stride);
    }
  }
}

}  // namespace
}  // namespace tamis::scalar

// Defines the kernel of every dtype pair of one format.
#define TAMIS_SCALAR_KERNEL(format, Rows, w, W, x, X)                                      \
  void spmm_##format##_##w##_##x##_scalar(const SpmmArgs& a, int64_t begin, int64_t end) { \
    scalar::spmm_rows<Rows, W, X>(a, begin, end);                                          \
  }
#define TAMIS_SCALAR_KERNELS_OF(format, Rows, w, W)   \
  TAMIS_SCALAR_KERNEL(format, Rows, w, W, f32, float) \
  TAMIS_SCALAR_KERNEL(format, Rows, w, W, f16, F16)   \
  TAMIS_SCALAR_KERNEL(format, Rows, w, W, bf16, BF16)
#define TAMIS_SCALAR_KERNELS(format, Rows)          \
  TAMIS_SCALAR_KERNELS_OF(format, Rows, f32, float) \
  TAMIS_SCALAR_KERNELS_OF(format, Rows, f16, F16)   \
  TAMIS_SCALAR_KERNELS_OF(format, Rows, bf16, BF16) \
  TAMIS_SCALAR_KERNELS_OF(format, Rows, i8, int8_t)
