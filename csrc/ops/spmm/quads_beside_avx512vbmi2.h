// i8 weights times quads of x: the next columns' weights are expanded beside the products of these.
//
// Tile: 12 rows by a panel of T tokens, whose sums and totals both stay in registers. Per 64 / T
// columns a load of x, 12 broadcasts, which take no pipe of products, and 12 vpdpbusd. Beside that
// 3 rows' words of the next chunk for every 64 columns; after a row's last chunk the first one of
// what follows. Zen 4, cycles for 64 columns of a row and 8 tokens: 8 products on pipes 0 and 1,
// kmovq 1.0 and vpexpandb 0.75 there: 9.85; measured 10.7 in cache, where expanding and multiplying
// in turns, 24 rows and totals in memory, take 14.7 (expanding alone 5.2). 16 tokens: 18.9
// for 22.7.
//
// Memory: later rows' lines are fetched in storage order, as many with every 64 columns as these
// have.   Tail: chunks that are not whole, rows short of a tile and the last ones, whose loads
// might pass the end of the values, are expanded by themselves.
// Tried on Zen 4, 8 tokens: 8 rows 10.9 cycles, 16 11.2; 24, totals in memory, a call a chunk 12.4.
#pragma once

#include <cstring>

#include "base/simd/avx512.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/quads_avx512vbmi2.h"

#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12, its own intrinsics

namespace tamis {
namespace {

inline constexpr int kBesideRows = 12;
inline constexpr int kTurnRows = kBesideRows / kStepWords;  // expanded with every 64 columns
inline constexpr int kBesideToL1 = 3;
inline constexpr int64_t kReadsPast = 64;

struct BesideTile {
  alignas(64) uint8_t weights[2][kBesideRows][kStepColumns];  // w + 128
  alignas(64) float total[16][16];                            // [rows, lanes of a panel]
  int ready = 0;                                              // weights of the next whole chunk
  const int8_t* values[kBesideRows];                          // of the chunk to expand
  const uint64_t* mask;                                       // [rows, words], likewise
  const int8_t* after_values[kBesideRows];  // of what follows the last whole chunk
  const uint64_t* after_mask;
  int64_t words;
  const char* next;  // of later rows, to fetch
  const char* next_mask;
  int64_t next_bytes, next_mask_bytes;  // with every 64 columns
  // A panel of x at the first chunk.
  const int8_t* x;
  const int32_t* starts;
  const float* steps;
  int64_t panels;
};

// sum[r] += weights[r] times x, of 64 / T columns.
template <int T>
TAMIS_INLINE void multiply_columns(__m512i (&sum)[kBesideRows], const uint8_t* w, const int8_t* x) {
  __m512i tokens = _mm512_load_si512(x);
  __asm__("" : "+v"(tokens));
#pragma GCC unroll 12
  for (int r = 0; r < kBesideRows; ++r) dot(sum[r], repeat_quads<T>(w + r * kStepColumns), tokens);
}

// The first `count` chunks, all whole, of whole rows: totals anew.
template <int T>
__attribute__((noinline)) void beside_steps(BesideTile& tile, int64_t count) {
  constexpr int kTurns = T;  // of 64 / T columns in a word
  const int64_t words = tile.words, x_bytes = tile.panels * kStepColumns * T;
  const int64_t next_bytes = tile.next_bytes, next_mask_bytes = tile.next_mask_bytes;
  const int64_t lanes = tile.panels * 16;
  const char *next = tile.next, *next_mask = tile.next_mask;
  const int8_t* x = tile.x;
  const int32_t* starts = tile.starts;
  const float* steps = tile.steps;
  simd::F32 total[kBesideRows];
#pragma GCC unroll 12
  for (int r = 0; r < kBesideRows; ++r) total[r] = simd::zero();
  for (int64_t left = count; left > 0; --left) {
    __m512i sum[kBesideRows];
#pragma GCC unroll 12
    for (int r = 0; r < kBesideRows; ++r) sum[r] = _mm512_load_si512(starts);
    const uint8_t* w = tile.weights[tile.ready][0];
    uint8_t* to = tile.weights[tile.ready ^ 1][0];
    const int8_t** values = left > 1 ? tile.values : tile.after_values;
    const uint64_t* mask = left > 1 ? tile.mask : tile.after_mask;
    for (const uint8_t* const end = w + kStepColumns; w < end; w += 64) {
      fetch_codes(next, next + next_bytes);
      fetch_codes(next_mask, next_mask + next_mask_bytes);
      next += next_bytes;
      next_mask += next_mask_bytes;
      const int8_t* at[kTurnRows];
#pragma GCC unroll 3
      for (int i = 0; i < kTurnRows; ++i) at[i] = values[i];
#pragma GCC unroll 16
      for (int turn = 0; turn < kTurns; ++turn) {
        __builtin_prefetch(x + 64 * turn + x_bytes, 0, kBesideToL1);
        multiply_columns<T>(sum, w + turn * (64 / T), x + 64 * turn);
#pragma GCC unroll 2
        for (int i = turn * kBesideRows / kTurns; i < (turn + 1) * kBesideRows / kTurns; ++i) {
          const int row = i / kStepWords, word = i % kStepWords;
          const uint64_t bits = mask[row * words + word];
          _mm512_store_si512(to + row * kStepColumns + word * 64,
                             expand_codes<false>(bits, at[row]));
          at[row] += simd::popcount(bits);
        }
      }
#pragma GCC unroll 3
      for (int i = 0; i < kTurnRows; ++i) values[i] = at[i];
      values += kTurnRows;
      mask += kTurnRows * words;
      to += kTurnRows * kStepColumns;
      x += 64 * T;
    }
    x += x_bytes - kStepColumns * T;
    tile.mask += kStepWords;
    tile.ready ^= 1;
    const simd::F32 step = _mm512_load_ps(steps);
#pragma GCC unroll 12
    for (int r = 0; r < kBesideRows; ++r) {
      total[r] = simd::fma(_mm512_cvtepi32_ps(sum[r]), step, total[r]);
    }
    starts += lanes;
    steps += lanes;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kBesideRows; ++r) _mm512_store_ps(tile.total[r], total[r]);
}

// A chunk of a row at the values `at`; returns where they go on.
TAMIS_INLINE const int8_t* expand_any(const MatrixView& w, int64_t row, const Chunks& chunk,
                                      const int8_t* at, uint8_t* to) {
  const uint64_t* mask = w.mask + row * mask_words(w.cols) + chunk.begin / 64;
  const int8_t* end = static_cast<const int8_t*>(w.values) + w.nnz;
  return end - at < kStepColumns + kReadsPast ? expand_row<true>(mask, at, chunk, to)
                                              : expand_row<false>(mask, at, chunk, to);
}

// Any chunk, expanded to `w`, onto the totals. scales: [rows, groups] at the chunk's group, or
// null.
template <int T>
__attribute__((noinline)) void beside_part(BesideTile& tile, const uint8_t* w, int64_t columns,
                                           const int8_t* x, const int32_t* starts,
                                           const float* steps, const float* scales, int64_t groups,
                                           int rows) {
  __m512i sum[kBesideRows];
#pragma GCC unroll 12
  for (int r = 0; r < kBesideRows; ++r) sum[r] = _mm512_load_si512(starts);
  for (const uint8_t* const end = w + columns; w < end; w += 64 / T, x += 64) {
    multiply_columns<T>(sum, w, x);
  }
#pragma GCC unroll 12
  for (int r = 0; r < kBesideRows; ++r) {
    simd::F32 v = _mm512_cvtepi32_ps(sum[r]);
    if (scales) v = simd::mul(v, simd::splat(scales[(r < rows ? r : 0) * groups]));
    _mm512_store_ps(tile.total[r],
                    simd::fma(v, _mm512_load_ps(steps), _mm512_load_ps(tile.total[r])));
  }
}

template <int T>
void spmm_beside(const SpmmArgs& a, const XQuads& x, int64_t row_begin, int64_t row_end) {
  const auto* values = static_cast<const int8_t*>(a.w.values);
  const int64_t words = mask_words(a.w.cols), whole = a.w.cols / kStepColumns;
  const int64_t groups = a.w.group_size < a.w.cols ? ceil_div(a.w.cols, a.w.group_size) : 1;
  const int64_t ahead = code_rows_ahead(a.w, kBesideRows);
  // Whether all chunks of these rows may be read a vector at a time.
  const auto at_once = [&](int64_t row) {
    return groups == 1 && whole > 0 && row + kBesideRows <= row_end &&
           a.w.nnz - row_start(a.w, row + kBesideRows) >= kReadsPast;
  };
  PageWalks walks(a.w, row_begin, row_end);
  const int64_t near = row_begin + ahead < row_end ? row_begin + ahead : row_end;
  fetch_codes(values + row_start(a.w, row_begin), values + row_start(a.w, near));
  fetch_codes(a.w.mask + row_begin * words, a.w.mask + near * words);
  BesideTile tile;
  std::memset(tile.weights, 0x80, sizeof tile.weights);
  std::memset(tile.total, 0, sizeof tile.total);
  tile.words = words;
  tile.panels = x.panels;
  bool expanded = false;
  for (int64_t row = row_begin; row < row_end; row += kBesideRows) {
    const int rows = static_cast<int>(row_end - row < kBesideRows ? row_end - row : kBesideRows);
    const bool steps = at_once(row);
    walks.before(row + ahead + kBesideRows);
    const int64_t next = row + ahead < a.w.rows ? row + ahead : a.w.rows;
    tile.next = reinterpret_cast<const char*>(values + row_start(a.w, next));
    tile.next_mask = reinterpret_cast<const char*>(a.w.mask + next * words);
    const int64_t row_bytes = row_start(a.w, row + rows) - row_start(a.w, row);
    if (steps) {
      tile.next_bytes = row_bytes / (whole * kStepWords);
      tile.next_mask_bytes = kTurnRows * kStepWords * 8;
    } else {
      fetch_codes(tile.next, tile.next + row_bytes);
      fetch_codes(tile.next_mask, tile.next_mask + rows * words * 8);
    }
    for (int64_t panel = 0; panel < x.panels; ++panel) {
      Chunks chunk(a.w);
      if (!expanded) {
        for (int r = 0; r < rows; ++r) tile.values[r] = values + row_start(a.w, row + r);
      }
      const bool last = panel + 1 == x.panels;
      // What follows is the next panel of these rows, or the next rows, or nothing: these again.
      const int64_t after = last && at_once(row + kBesideRows) ? row + kBesideRows : row;
      if (steps) {
        if (!expanded) {
          for (int r = 0; r < kBesideRows; ++r) {
            tile.values[r] =
                expand_any(a.w, row + r, chunk, tile.values[r], tile.weights[tile.ready][r]);
          }
        }
        tile.mask = a.w.mask + row * words + kStepWords;
        for (int r = 0; r < kBesideRows; ++r) {
          tile.after_values[r] = values + row_start(a.w, after + r);
        }
        tile.after_mask = a.w.mask + after * words;
        tile.x = x.at(0, panel);
        tile.starts = x.starts + panel * 16;
        tile.steps = x.steps + panel * 16;
        beside_steps<T>(tile, whole);
        tile.next_bytes = tile.next_mask_bytes = 0;  // fetched
        while (chunk.more() && chunk.begin < whole * kStepColumns) chunk.next();
      } else {
        std::memset(tile.total, 0, sizeof tile.total);
      }
      for (; chunk.more(); chunk.next()) {
        auto& weights = tile.weights[tile.ready ^ 1];
        for (int r = 0; r < rows; ++r) {
          tile.values[r] = expand_any(a.w, row + r, chunk, tile.values[r], weights[r]);
        }
        const int64_t first = chunk.begin / 64, end = ceil_div(chunk.end, 64);
        beside_part<T>(tile, weights[0], (end - first) * 64,
                       x.at(chunk.step(), panel) + first % kStepWords * 64 * T,
                       x.starts + (chunk.index * x.panels + panel) * 16,
                       x.steps + (chunk.step() * x.panels + panel) * 16,
                       groups > 1 ? a.w.scales + row * groups + chunk.group : nullptr, groups,
                       rows);
      }
      store_panel(a, tile.total, 1, row, rows, panel * T, T, groups > 1);
      expanded = steps && (!last || after != row);
      for (int r = 0; expanded && r < kBesideRows; ++r) tile.values[r] = tile.after_values[r];
    }
  }
}

}  // namespace
}  // namespace tamis
