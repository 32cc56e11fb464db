// y[m,n] = sum_k x[m,k] * w[n,k] for 8 or 16 tokens by vdpbf16ps: the next columns' weights are
// expanded beside the products of these.  w: bitmap or nm, bf16; accumulates f32, one chain per
// output of 16 tokens, two of 8.
//
// x: [blocks of T tokens][words][T vectors, twice if T is 16][T tokens, 32 / T columns]; zero past
// k and for missing tokens. So a broadcast of a row's next columns meets a vector.
//
// Tile: 16 rows by T tokens, whose sums stay in registers for all columns. Per vector a load of x,
// 16 broadcasts, which take no pipe of products, and 16 vdpbf16ps; beside that 2 rows' words for
// every eighth of a word, after a row's last word the first one of the next tile. Zen 4, cycles for
// 64 columns of a row and 16 tokens: 32 products on pipes 0 and 1, kmovd 0.5 and vpexpandw 0.7
// there twice: 34.4; measured 35.4 in cache and 36.6 cold, 43.2 where some words were expanded
// first, then multiplied. 8 rows 37.2 and 38.4.
//
// Memory: later rows' lines are fetched in storage order, evenly.   Tail: rows short of a tile and
// the last ones, whose loads might pass the end of the values, are expanded by themselves.
//
// Needs: mask bits past k clear; x finite where w is zero, else the sum may be NaN.
#pragma once

#include "base/simd/avx512.h"
#include "ops/spmm/bf16_pair.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/pages.h"
#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

inline constexpr int kBesideRows = 16;
inline constexpr int kBesidePairs = 32;  // of columns in a word
inline constexpr int64_t kBesideReadsPast = 32;

struct BesideTile {
  alignas(64) uint32_t weights[2][kBesideRows][kBesidePairs];
  alignas(64) float sums[kBesideRows][16];
  int ready = 0;                          // weights of the next word
  const BF16* values[kBesideRows];        // of the word to expand
  const uint64_t* mask;                   // [rows, words], likewise
  const BF16* after_values[kBesideRows];  // of what follows the last word
  const uint64_t* after_mask;
  const char* next;  // of later rows, to fetch
  const char* next_mask;
  int64_t next_bytes;  // with two rows
};

// 32 columns of a row.
TAMIS_INLINE void expand_half(uint32_t bits, const BF16*& p, uint32_t* out) {
  __m512i packed = _mm512_loadu_si512(p);
  // GCC would expand from memory, which takes longer (bf16_pair.h).
  __asm__("" : "+v"(packed));
  _mm512_store_si512(out, _mm512_mask_expand_epi16(simd::opaque_zero(), bits, packed));
  p += simd::popcount(bits);
}

// sum[r] += the pairs of weights from w on times a vector of x.
template <int T>
TAMIS_INLINE void multiply_pairs(simd::F32 (&sum)[kBesideRows], const uint32_t* w,
                                 const uint32_t* x) {
  __m512i tokens = _mm512_load_si512(x);
  __asm__("" : "+v"(tokens));
#pragma GCC unroll 16
  for (int r = 0; r < kBesideRows; ++r) {
    __m512i weights;
    if constexpr (T == 8) {
      int64_t two;
      __builtin_memcpy(&two, w + r * kBesidePairs, 8);
      weights = _mm512_set1_epi64(two);
    } else {
      weights = _mm512_set1_epi32(static_cast<int>(w[r * kBesidePairs]));
    }
    sum[r] = _mm512_dpbf16_ps(sum[r], (__m512bh)tokens, (__m512bh)weights);
  }
}

// All words of a whole tile.
template <int T>
__attribute__((noinline)) void beside_rows(BesideTile& tile, const uint32_t* x, int64_t words) {
  constexpr int kPairs = 16 / T;                                    // of a broadcast
  constexpr int kTurn = kBesidePairs / kPairs / (kBesideRows / 2);  // vectors with two rows
  const char *next = tile.next, *next_mask = tile.next_mask;
  const int64_t next_bytes = tile.next_bytes;
  simd::F32 sum[kBesideRows];
#pragma GCC unroll 16
  for (int r = 0; r < kBesideRows; ++r) sum[r] = simd::zero();
  for (int64_t left = words; left > 0; --left) {
    const uint32_t* w = tile.weights[tile.ready][0];
    uint32_t* to = tile.weights[tile.ready ^ 1][0];
    const BF16** values = left > 1 ? tile.values : tile.after_values;
    const uint64_t* mask = left > 1 ? tile.mask : tile.after_mask;
    for (int row = 0; row < kBesideRows; row += 2) {
      fetch_codes(next, next + next_bytes);
      next += next_bytes;
      const BF16 *low = values[0], *high = values[1];
      const uint64_t low_bits = mask[0], high_bits = mask[words];
#pragma GCC unroll 4
      for (int v = 0; v < kTurn; ++v) {
        __builtin_prefetch(x + 16 * v + kBesidePairs * T, 0, 3);
        multiply_pairs<T>(sum, w + v * kPairs, x + 16 * v);
        if (v == 0) expand_half(static_cast<uint32_t>(low_bits), low, to);
        if (v == kTurn / 4) expand_half(static_cast<uint32_t>(low_bits >> 32), low, to + 16);
        if (v == kTurn / 2) expand_half(static_cast<uint32_t>(high_bits), high, to + 32);
        if (v == kTurn * 3 / 4) expand_half(static_cast<uint32_t>(high_bits >> 32), high, to + 48);
      }
      values[0] = low;
      values[1] = high;
      values += 2;
      mask += 2 * words;
      to += 2 * kBesidePairs;
      w += kTurn * kPairs;
      x += kTurn * 16;
    }
    for (int i = 0; i < kBesideRows * 8; i += 64) __builtin_prefetch(next_mask + i, 0, kCodesToL2);
    next_mask += kBesideRows * 8;
    ++tile.mask;
    tile.ready ^= 1;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kBesideRows; ++r) simd::store(sum[r], tile.sums[r]);
}

// A word of a row, never past the end of the values.
TAMIS_INLINE void expand_any(const MatrixView& w, uint64_t bits, const BF16*& p, uint32_t* out) {
  const auto* end = static_cast<const BF16*>(w.values) + w.nnz;
  if (end - p < 64 + kBesideReadsPast) {
    Bf16Pair::expand<true>(bits, p, out);
  } else {
    Bf16Pair::expand<false>(bits, p, out);
  }
  p += simd::popcount(bits);
}

// Rows [row, row + rows) by themselves.
template <int T>
__attribute__((noinline)) void beside_tail(const MatrixView& w, int64_t row, int rows,
                                           const uint32_t* x, BesideTile& tile) {
  const int64_t words = mask_words(w.cols);
  simd::F32 sum[kBesideRows];
#pragma GCC unroll 16
  for (int r = 0; r < kBesideRows; ++r) sum[r] = simd::zero();
  auto& weights = tile.weights[tile.ready];
  for (int64_t word = 0; word < words; ++word) {
    for (int r = 0; r < rows; ++r) {
      expand_any(w, w.mask[(row + r) * words + word], tile.values[r], weights[r]);
    }
    for (int pair = 0; pair < kBesidePairs; pair += 16 / T, x += 16) {
      multiply_pairs<T>(sum, weights[0] + pair, x);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kBesideRows; ++r) simd::store(sum[r], tile.sums[r]);
}

// The two sums of each of eight tokens added.
TAMIS_INLINE void join_tokens(float (&sums)[kBesideRows][16]) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
  for (auto& of_row : sums) {
    const __m512 v = _mm512_load_ps(of_row);
    _mm512_store_ps(of_row,
                    _mm512_permutexvar_ps(even, _mm512_add_ps(v, _mm512_permute_ps(v, 0xb1))));
  }
}

template <int T>
void spmm_beside(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const auto* values = static_cast<const BF16*>(a.w.values);
  const int64_t words = mask_words(a.w.cols);
  const Expander<Bf16Pair, 1> starts(a.w);
  const auto place = [&](int64_t row) { return values + starts.row_values(row); };
  const auto whole = [&](int64_t row) {
    return row + kBesideRows <= row_end &&
           a.w.nnz - starts.row_values(row + kBesideRows) >= kBesideReadsPast;
  };
  const int64_t row_bytes = 2 * a.w.nnz / a.w.rows + words * 8;
  const int64_t ahead = ceil_div(kCodesAheadBytes, row_bytes * kBesideRows) * kBesideRows;
  const int64_t near = row_begin + ahead < row_end ? row_begin + ahead : row_end;
  fetch_codes(place(row_begin), place(near));
  fetch_codes(a.w.mask + row_begin * words, a.w.mask + near * words);
  BesideTile tile;
  __builtin_memset(tile.weights, 0, sizeof tile.weights);
  for (int64_t token = 0; token < a.m; token += T) {
    const auto* x = static_cast<const uint32_t*>(a.prepared) + token * words * kBesidePairs;
    PageWalks walks(a.w, row_begin, row_end);
    bool expanded = false;
    for (int64_t row = row_begin; row < row_end; row += kBesideRows) {
      const int rows = static_cast<int>(row_end - row < kBesideRows ? row_end - row : kBesideRows);
      walks.before(row + ahead + kBesideRows);
      for (int r = 0; !expanded && r < rows; ++r) tile.values[r] = place(row + r);
      if (whole(row)) {
        const int64_t next = row + ahead < a.w.rows ? row + ahead : a.w.rows;
        tile.next = reinterpret_cast<const char*>(place(next));
        tile.next_mask = reinterpret_cast<const char*>(a.w.mask + next * words);
        tile.next_bytes = 2 * (place(row + rows) - place(row)) / (words * (kBesideRows / 2));
        const uint64_t* mask = a.w.mask + row * words;
        for (int r = 0; !expanded && r < rows; ++r) {
          expand_any(a.w, mask[r * words], tile.values[r], tile.weights[tile.ready][r]);
        }
        tile.mask = mask + 1;
        expanded = whole(row + kBesideRows);
        // What follows is the next tile, or nothing: these rows again.
        const int64_t after = expanded ? row + kBesideRows : row;
        for (int r = 0; r < kBesideRows; ++r) tile.after_values[r] = place(after + r);
        tile.after_mask = a.w.mask + after * words;
        beside_rows<T>(tile, x, words);
        for (int r = 0; r < kBesideRows; ++r) tile.values[r] = tile.after_values[r];
      } else {
        beside_tail<T>(a.w, row, rows, x, tile);
      }
      if constexpr (T == 8) join_tokens(tile.sums);
      write_square<BF16>(a, tile.sums[0], 16, row, rows, token, a.m - token < T ? a.m - token : T);
    }
  }
}

}  // namespace
}  // namespace tamis
