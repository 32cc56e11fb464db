// y[m,n] = sum_k x[m,k] * w[n,k].  w: dense r x c blocks, each row-major; accumulates f32.
// Tile: 4 rows of a block times up to 4 tokens: 16 (AVX2: 8) chains, x read once per 4 rows.
// Memory: four rows of each block are pieces with gaps, which Zen 4 does not fetch ahead, so the
// first tokens' tiles share out the next block row and fetch it in storage order into L2.
// Needs: cols % c == 0, rows % r == 0, block columns within the matrix.   Tail: c % lanes, masked.
#pragma once

#include "base/simd/element.h"
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

inline constexpr int kBlockToL2 = 2;

// What is fetched meanwhile: `bytes` from `at` on for each block of a tile.
struct BlockFetch {
  const char* at;
  int64_t bytes;

  TAMIS_INLINE void step() {
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(at + b, 0, kBlockToL2);
    at += bytes;
  }
};

// Rows [row, row + R) of one block row times tokens [token, token + M).
template <class W, class X, int R, int M>
TAMIS_INLINE void block_tile(const SpmmArgs& a, int64_t row, int64_t token, BlockFetch& next) {
  const int64_t r = a.w.block_rows, c = a.w.block_cols;
  const auto* bias = static_cast<const X*>(a.bias);
  const auto* x = static_cast<const X*>(a.x) + token * a.x_stride;
  auto* y = static_cast<X*>(a.y) + token * a.y_stride + row;
  simd::F32 sum[R][M];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) sum[i][t] = simd::zero();
  }
  const auto multiply = [&](const W* w, const X* at, auto load) __attribute__((always_inline)) {
    simd::F32 tokens[M];
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) tokens[t] = load(at + t * a.x_stride);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const simd::F32 weights = load(w + i * c);
#pragma GCC unroll 8
      for (int t = 0; t < M; ++t) sum[i][t] = simd::fma(weights, tokens[t], sum[i][t]);
    }
  };
  for (int64_t b = a.w.row_offsets[row / r]; b < a.w.row_offsets[row / r + 1]; ++b) {
    next.step();
    const W* w = static_cast<const W*>(a.w.values) + (b * r + row % r) * c;
    const X* at = x + a.w.col_indices[b] * c;
    int64_t j = 0;
    for (; j + simd::kLanes <= c; j += simd::kLanes) {
      multiply(w + j, at + j, [](auto* p) __attribute__((always_inline)) { return simd::load(p); });
    }
    if (const int left = static_cast<int>(c - j)) {
      multiply(w + j, at + j,
               [left](auto* p) __attribute__((always_inline)) { return simd::load(p, left); });
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
    const float start = bias ? simd::to_f32(bias[row + i]) : 0.0f;
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
      simd::store(simd::sum(sum[i][t]) + start, y + t * a.y_stride + i);
    }
  }
}

template <class W, class X, int M>
void block_pass(const SpmmArgs& a, int64_t row, int64_t row_end, int64_t token, BlockFetch next) {
  constexpr int R = simd::kLanes == 16 || M <= 2 ? 4 : 2;
  const int64_t r = a.w.block_rows, rows = row_end - row;
  next.bytes = ceil_div(next.bytes, rows / R + rows % R);  // of each tile
  while (row < row_end) {
    const int64_t left = r - row % r;  // tiles stay inside one block row
    if (left >= R) {
      block_tile<W, X, R, M>(a, row, token, next);
      row += R;
    } else {
      block_tile<W, X, 1, M>(a, row, token, next);
      ++row;
    }
  }
}

template <class W, class X>
TAMIS_INLINE void spmm_block(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  constexpr int64_t kTokens = 4;
  const int64_t turn = a.w.block_rows;  // all tokens per block row, while its blocks are in cache
  const int64_t block_bytes = turn * a.w.block_cols * static_cast<int64_t>(sizeof(W));
  const auto blocks = [&](int64_t row) { return a.w.row_offsets[row / turn]; };
  const auto* values = static_cast<const char*>(a.w.values);
  for (int64_t row = row_begin; row < row_end; row += turn) {
    const int64_t mine = blocks(row + turn) - blocks(row), begin = blocks(row + turn) * block_bytes;
    const int64_t end = row + turn < row_end ? blocks(row + 2 * turn) * block_bytes : begin;
    BlockFetch next{values + begin, mine ? ceil_div(end - begin, mine) : 0};
    for (int64_t token = 0; token < a.m; token += kTokens, next.bytes = 0) {
      switch (a.m - token) {
        case 1:
          block_pass<W, X, 1>(a, row, row + turn, token, next);
          break;
        case 2:
          block_pass<W, X, 2>(a, row, row + turn, token, next);
          break;
        case 3:
          block_pass<W, X, 3>(a, row, row + turn, token, next);
          break;
        default:
          block_pass<W, X, kTokens>(a, row, row + turn, token, next);
      }
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_BLOCK_KERNEL(w, W, x, X, level)                                                  \
  void spmm_block_##w##_##x##_##level(const SpmmArgs& a, int64_t row_begin, int64_t row_end) { \
    spmm_block<W, X>(a, row_begin, row_end);                                                   \
  }
