// y[m,n] = sum_k x[m,k] * w[n,k].  w: csr8, i.e. for each 64 columns a count, and for each value
// its column among them; accumulates f32, one chain per row and token.
//
// Tile: Step::rows(M) rows of w times M tokens. The 64 inputs of a word lie in registers, and a
// permute picks those of a row's values: no gather, and a word costs the same at any density below
// one vector of values (AVX-512: 25 % with f32, 50 % with bf16 products).
//
// Needs: columns within their word (format check); x finite where w is zero, else the sum may be
// NaN: lanes beyond a word's count multiply zero by its first column.
//
// Tail: values and columns by masked loads, so nothing is read past them; k % 64 columns by masked
// loads of x.
//
// Tried (Zen 4, 576x576 in cache, m = 1, ns per 64 columns at 90 %; expanding a bitmap takes 2.07
// with bf16 and 3.48 with f32): this 1.22 and 2.14; columns compressed out of a bitmap's mask by
// vpcompressb 1.64 and 2.28; three pointers a row instead of one offset 2.14 and 3.59 (a slower
// moment, bitmap 2.77 and 5.44); eight rows in flight as fast in cache but up to twice as slow
// from memory.
#pragma once

#include "base/simd/element.h"
#include "ops/spmm/pages.h"
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

TAMIS_INLINE void fetch_to_l2(const void* p) {
  __builtin_prefetch(p, 0, 2);
}

// R rows of w times M tokens.
template <class Step, int R, int M>
TAMIS_INLINE void csr8_tile(const SpmmArgs& a, int64_t row, int64_t token) {
  using W = typename Step::W;
  using X = typename Step::X;
  const MatrixView& w = a.w;
  const int64_t words = mask_words(w.cols), full = w.cols / 64;
  const auto* values = static_cast<const W*>(w.values);
  const uint8_t* counts = w.col_bytes + row * words;
  const uint8_t* columns = w.col_bytes + w.rows * words;
  const auto* x = static_cast<const X*>(a.x) + token * a.x_stride;
  int64_t at[R];
  simd::F32 sum[M][R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    at[r] = w.row_offsets[row + r];
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) sum[t][r] = simd::zero();
  }
  // The rows after the next tile, fetched in storage order while this one is computed.
  const int64_t ahead = row + 3 * R < w.rows ? row + 3 * R : w.rows;
  const auto* next_values = reinterpret_cast<const char*>(values + w.row_offsets[ahead]);
  const uint8_t* next_columns = columns + w.row_offsets[ahead];
  const uint8_t* next_counts = w.col_bytes + ahead * words;
  const int64_t each = (w.row_offsets[row + R] - at[0]) / (words ? words : 1) + 1;

  const auto word = [&](int64_t i,
                        const typename Step::Chunk(&chunk)[M]) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int count = counts[r * words + i];
      for (int from = 0;; from += Step::kLanes) {
        const auto packed = Step::values(values + at[r] + from, count - from);
        const auto picks = Step::columns(columns + at[r] + from, count - from);
#pragma GCC unroll 8
        for (int t = 0; t < M; ++t) {
          sum[t][r] = Step::dot(sum[t][r], packed, Step::pick(chunk[t], picks));
        }
        if (__builtin_expect(count - from <= Step::kLanes, 1)) break;
      }
      at[r] += count;
    }
  };
  for (int64_t i = 0; i < full; ++i) {
    for (int64_t b = 0; b < each * static_cast<int64_t>(sizeof(W)); b += 64) {
      fetch_to_l2(next_values + b);
    }
    next_values += each * static_cast<int64_t>(sizeof(W));
    fetch_to_l2(next_columns);
    next_columns += each;
    if (i % 16 == 0) {
      fetch_to_l2(next_counts);
      next_counts += 64;
    }
    typename Step::Chunk chunk[M];
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) chunk[t] = Step::load(x + t * a.x_stride + 64 * i);
    word(i, chunk);
  }
  if (full < words) {
    const int left = static_cast<int>(w.cols - 64 * full);
    typename Step::Chunk chunk[M];
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) chunk[t] = Step::load(x + t * a.x_stride + 64 * full, left);
    word(full, chunk);
  }

  const auto* bias = static_cast<const X*>(a.bias);
  const simd::F32 start = bias ? simd::load(bias + row, R) : simd::zero();
  auto* y = static_cast<X*>(a.y) + token * a.y_stride + row;
#pragma GCC unroll 8
  for (int t = 0; t < M; ++t) {
    simd::store(simd::add(simd::sums(sum[t]), start), y + t * a.y_stride, R);
  }
}

template <class Step, int M>
void csr8_pass(const SpmmArgs& a, PageWalks& walks, int64_t row, int64_t row_end, int64_t token) {
  constexpr int R = Step::rows(M);
  for (; row + R <= row_end; row += R) {
    walks.before(row + 4 * R);
    csr8_tile<Step, R, M>(a, row, token);
  }
  for (; row < row_end; ++row) csr8_tile<Step, 1, M>(a, row, token);
}

// Rows per turn over all tokens: few enough for their values to stay in L1 between passes.
inline constexpr int64_t kCsr8TurnBytes = 12 * 1024;

template <class Step>
void spmm_csr8(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  using Pass = void (*)(const SpmmArgs&, PageWalks&, int64_t, int64_t, int64_t);
  static constexpr Pass kPass[] = {csr8_pass<Step, 1>, csr8_pass<Step, 2>, csr8_pass<Step, 3>,
                                   csr8_pass<Step, 4>};
  constexpr int64_t kMax = 4;
  const int64_t row_bytes = a.w.nnz * static_cast<int64_t>(sizeof(typename Step::W) + 1) / a.w.rows;
  const int64_t fit = kCsr8TurnBytes / (row_bytes + 1) / 4 * 4;
  const int64_t turn = a.m <= kMax ? row_end - row_begin : fit > 4 ? fit : 4;
  PageWalks walks(a.w, row_begin, row_end);
  for (int64_t row = row_begin; row < row_end; row += turn) {
    const int64_t end = row + turn < row_end ? row + turn : row_end;
    for (int64_t token = 0, left = a.m; left > 0;) {
      const int64_t tokens = ceil_div(left, ceil_div(left, kMax));  // even passes: 5 = 3 + 2
      kPass[tokens - 1](a, walks, row, end, token);
      token += tokens;
      left -= tokens;
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_CSR8_KERNEL(w, x, level, Step)                                                  \
  void spmm_csr8_##w##_##x##_##level(const SpmmArgs& a, int64_t row_begin, int64_t row_end) { \
    spmm_csr8<Step>(a, row_begin, row_end);                                                   \
  }
