// y[m,n] = sum_k x[m,k] * w[n,k].  w: csr or block, i8; x: floats, i.e. widened to f32 [m, k], so
// nothing of it is lost and one loop serves every dtype of x; accumulates f32 in simd::kLanes
// chains.
//
// Tile: csr one row, block up to 4 rows of a block row, times up to 4 tokens; values are widened
// once for all tokens. The scale of a row is applied to its sum; scales of groups to the values.
//
// Bytes: csr 5 a value, of which 16 cost a gather of some 20 cycles per token, so cores wait
// for gathers, not for memory; block 1 a value.   Tail: masked.
// Tried: csr of codes: there is no gather of bytes, and one of dwords reads past the end of x.
#pragma once

#include "base/simd/element.h"
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

inline constexpr int kFloatTokens = 4;

TAMIS_INLINE int64_t scale_count(const MatrixView& w) {
  return w.group_size < w.cols ? ceil_div(w.cols, w.group_size) : 1;
}

// Values [0, n) at p, of columns column(i), times the scales of their groups.
template <class Column>
TAMIS_INLINE simd::F32 scaled(const MatrixView& w, simd::F32 values, const float* scales, int n,
                              const Column& column) {
  const int64_t first = column(0) / w.group_size;
  if (column(n - 1) / w.group_size == first) return simd::mul(values, simd::splat(scales[first]));
  alignas(64) float scale[simd::kLanes] = {};
  for (int i = 0; i < n; ++i) scale[i] = scales[column(i) / w.group_size];
  return simd::mul(values, simd::load(scale));
}

template <class X>
void store_float(const SpmmArgs& a, float v, int64_t row, int64_t token) {
  const auto* bias = static_cast<const X*>(a.bias);
  if (bias) v += simd::to_f32(bias[row]);
  simd::store(v, static_cast<X*>(a.y) + token * a.y_stride + row);
}
TAMIS_INLINE void store_float(const SpmmArgs& a, float v, int64_t row, int64_t token) {
  switch (a.x_dtype) {
    case DType::f32:
      return store_float<float>(a, v, row, token);
    case DType::f16:
      return store_float<F16>(a, v, row, token);
    default:
      return store_float<BF16>(a, v, row, token);
  }
}

template <int M>
void csr_floats(const SpmmArgs& a, int64_t row, int64_t row_end, int64_t token) {
  const auto* values = static_cast<const int8_t*>(a.w.values);
  const float* x = static_cast<const float*>(a.prepared) + token * a.w.cols;
  const int64_t groups = scale_count(a.w);
  for (; row < row_end; ++row) {
    simd::F32 sum[M];
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) sum[t] = simd::zero();
    const float* scales = a.w.scales + row * groups;
    const int64_t end = a.w.row_offsets[row + 1];
    for (int64_t i = a.w.row_offsets[row]; i < end; i += simd::kLanes) {
      const int32_t* at = a.w.col_indices + i;
      const int n = end - i < simd::kLanes ? static_cast<int>(end - i) : simd::kLanes;
      simd::F32 w = n == simd::kLanes ? simd::load(values + i) : simd::load(values + i, n);
      if (groups > 1) w = scaled(a.w, w, scales, n, [at](int j) { return int64_t{at[j]}; });
#pragma GCC unroll 4
      for (int t = 0; t < M; ++t) {
        const float* of_token = x + t * a.w.cols;
        sum[t] = simd::fma(
            w, n == simd::kLanes ? simd::gather(of_token, at) : simd::gather(of_token, at, n),
            sum[t]);
      }
    }
    const float scale = groups > 1 ? 1.0f : scales[0];
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) store_float(a, simd::sum(sum[t]) * scale, row, token + t);
  }
}

// Rows [row, row + R) of one block row.
template <int R, int M>
TAMIS_INLINE void block_floats_tile(const SpmmArgs& a, int64_t row, int64_t token) {
  const int64_t r = a.w.block_rows, c = a.w.block_cols, groups = scale_count(a.w);
  const float* x = static_cast<const float*>(a.prepared) + token * a.w.cols;
  simd::F32 sum[R][M];
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) sum[i][t] = simd::zero();
  }
  for (int64_t b = a.w.row_offsets[row / r]; b < a.w.row_offsets[row / r + 1]; ++b) {
    const int8_t* values = static_cast<const int8_t*>(a.w.values) + (b * r + row % r) * c;
    const int64_t column = a.w.col_indices[b] * c;
    for (int64_t j = 0; j < c; j += simd::kLanes) {
      const int n = c - j < simd::kLanes ? static_cast<int>(c - j) : simd::kLanes;
      const bool whole = n == simd::kLanes;
      const float* at = x + column + j;
      simd::F32 tokens[M];
#pragma GCC unroll 4
      for (int t = 0; t < M; ++t) {
        const float* of_token = at + t * a.w.cols;
        tokens[t] = whole ? simd::load(of_token) : simd::load(of_token, n);
      }
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        const int8_t* p = values + i * c + j;
        simd::F32 w = whole ? simd::load(p) : simd::load(p, n);
        if (groups > 1) {
          w = scaled(a.w, w, a.w.scales + (row + i) * groups, n,
                     [column, j](int at_lane) { return column + j + at_lane; });
        }
#pragma GCC unroll 4
        for (int t = 0; t < M; ++t) sum[i][t] = simd::fma(w, tokens[t], sum[i][t]);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) {
    const float scale = groups > 1 ? 1.0f : a.w.scales[row + i];
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) {
      store_float(a, simd::sum(sum[i][t]) * scale, row + i, token + t);
    }
  }
}

template <int M>
void block_floats(const SpmmArgs& a, int64_t row, int64_t row_end, int64_t token) {
  constexpr int R = simd::kLanes == 16 || M <= 2 ? 4 : 2;
  while (row < row_end) {
    if (a.w.block_rows - row % a.w.block_rows >= R) {  // tiles stay inside one block row
      block_floats_tile<R, M>(a, row, token);
      row += R;
    } else {
      block_floats_tile<1, M>(a, row, token);
      ++row;
    }
  }
}

using FloatsPass = void (*)(const SpmmArgs&, int64_t, int64_t, int64_t);

// All tokens, kFloatTokens at a time, for `turn` rows while their values are in cache.
TAMIS_INLINE void floats_turns(const SpmmArgs& a, int64_t row_begin, int64_t row_end, int64_t turn,
                               const FloatsPass (&pass)[kFloatTokens]) {
  for (int64_t row = row_begin; row < row_end; row += turn) {
    const int64_t end = row + turn < row_end ? row + turn : row_end;
    for (int64_t token = 0; token < a.m; token += kFloatTokens) {
      const int64_t left = a.m - token;
      pass[(left < kFloatTokens ? left : kFloatTokens) - 1](a, row, end, token);
    }
  }
}

TAMIS_INLINE void spmm_csr_floats(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  static constexpr FloatsPass kPass[] = {csr_floats<1>, csr_floats<2>, csr_floats<3>,
                                         csr_floats<4>};
  floats_turns(a, row_begin, row_end, a.m <= kFloatTokens ? row_end - row_begin : 8, kPass);
}
TAMIS_INLINE void spmm_block_floats(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  static constexpr FloatsPass kPass[] = {block_floats<1>, block_floats<2>, block_floats<3>,
                                         block_floats<4>};
  floats_turns(a, row_begin, row_end, a.w.block_rows, kPass);
}

TAMIS_INLINE int64_t floats_bytes(const SpmmArgs& a) {
  return a.m * a.w.cols * 4;
}

// Columns [part / parts) of every token.
template <class X>
TAMIS_INLINE void prepare_floats(const SpmmArgs& a, void* prepared, int part, int parts) {
  const int64_t begin = a.w.cols * part / parts, end = a.w.cols * (part + 1) / parts;
  for (int64_t t = 0; t < a.m; ++t) {
    const X* x = static_cast<const X*>(a.x) + t * a.x_stride;
    float* to = static_cast<float*>(prepared) + t * a.w.cols;
    int64_t i = begin;
    for (; i + simd::kLanes <= end; i += simd::kLanes) {
      simd::store(simd::load(x + i), to + i, simd::kLanes);
    }
    if (i < end) {
      const int n = static_cast<int>(end - i);
      simd::store(simd::load(x + i, n), to + i, n);
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_FLOATS_KERNEL(x, X, level)                                                     \
  namespace {                                                                                \
  int64_t floats_bytes_##x(const SpmmArgs& a) {                                              \
    return floats_bytes(a);                                                                  \
  }                                                                                          \
  void prepare_floats_##x(const SpmmArgs& a, void* prepared, int part, int parts) {          \
    prepare_floats<X>(a, prepared, part, parts);                                             \
  }                                                                                          \
  }                                                                                          \
  const SpmmXForm spmm_floats_##x##_##level = {floats_bytes_##x, prepare_floats_##x};        \
  void spmm_csr_i8_##x##_##level##_floats(const SpmmArgs& a, int64_t begin, int64_t end) {   \
    spmm_csr_floats(a, begin, end);                                                          \
  }                                                                                          \
  void spmm_block_i8_##x##_##level##_floats(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_block_floats(a, begin, end);                                                        \
  }
