// y[m,n] = sum_k x[m,k] * w[n,k] for 8 or 16 tokens: the next columns' weights are expanded beside
// the products of these.  w: bitmap or nm; accumulates f32, one chain per output of 16 tokens, two
// of 8.
//
// A unit is four bytes: one column as f32, or two as a pair of bf16 (vdpbf16ps).
//
// x: [blocks of T tokens][words][vectors][T tokens, 16 / T units]; zero past k and for missing
// tokens. So a broadcast of a row's next units meets a vector.
//
// Tile: 16 rows by T tokens, whose sums stay in registers for all columns. Per vector a load of x,
// 16 broadcasts, which take no pipe of products, and 16 products; beside that 2 rows' words for
// every eighth of a word, after a row's last word the first one of the next tile. Zen 4, cycles for
// 64 columns of a row and 16 tokens: bf16 32 products on pipes 0 and 1, kmovd 0.5 and vpexpandw 0.7
// there twice: 34.4; measured 35.4 in cache and 36.6 cold, 43.2 where some words were expanded
// first, then multiplied. 8 rows 37.2 and 38.4. f32: 64 products and four expansions, 69; measured
// 70.5 and 74 (65.5 and 71 without any expansion; 8 rows 90). 8 tokens of f32: 37; 39.3 and 42.
// Tried, f32: a row's next values or x fetched to L1 or not, masks shifted in mask registers: 1 %.
//
// Memory: later rows' lines are fetched in storage order, evenly.   Tail: rows short of a tile and
// the last ones, whose loads might pass the end of the values, are expanded by themselves.
//
// Needs: mask bits past k clear; x finite where w is zero, else the sum may be NaN.
#pragma once

#include "base/simd/avx512.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/pages.h"
#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

inline constexpr int kBesideRows = 16;

// Weights of f32.
struct BesideF32 : F32Unit<float, float> {
  static constexpr int kVectorColumns = 16;

  static TAMIS_INLINE __m512i spread(uint64_t bits, __m512i packed) {
    return _mm512_mask_expand_epi32(simd::opaque_zero(), static_cast<__mmask16>(bits), packed);
  }
  static TAMIS_INLINE simd::F32 dot(simd::F32 sum, __m512i w, __m512i x) {
    return simd::fma(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), sum);
  }
};

template <class Unit>
struct BesideTile {
  using W = typename Unit::W;
  using Element = typename Unit::Element;
  static constexpr int kUnits = 64 / Unit::kColumns;  // of a word

  alignas(64) Element weights[2][kBesideRows][kUnits];
  alignas(64) float sums[kBesideRows][16];
  int ready = 0;                       // weights of the next word
  const W* values[kBesideRows];        // of the word to expand
  const uint64_t* mask;                // [rows, words], likewise
  const W* after_values[kBesideRows];  // of what follows the last word
  const uint64_t* after_mask;
  const char* next;  // of later rows, to fetch
  const char* next_mask;
  int64_t next_bytes;  // with two rows
};

// A vector of a row's units, of the low bits.
template <class Unit>
TAMIS_INLINE void expand_vector(uint64_t bits, const typename Unit::W*& p,
                                typename Unit::Element* out) {
  bits &= ~uint64_t{0} >> (64 - Unit::kVectorColumns);
  __asm__("" : "+r"(bits));  // GCC would shift masks in mask registers
  __m512i packed = _mm512_loadu_si512(p);
  // GCC would expand from memory, which takes longer (bf16_pair.h).
  __asm__("" : "+v"(packed));
  _mm512_store_si512(out, Unit::spread(bits, packed));
  p += simd::popcount(bits);
}

// sum[r] += the units of weights from w on times a vector of x.
template <class Unit, int T>
TAMIS_INLINE void multiply_units(simd::F32 (&sum)[kBesideRows], const typename Unit::Element* w,
                                 const typename Unit::Element* x) {
  __m512i tokens = _mm512_load_si512(x);
  __asm__("" : "+v"(tokens));
#pragma GCC unroll 16
  for (int r = 0; r < kBesideRows; ++r) {
    const auto* mine = w + r * BesideTile<Unit>::kUnits;
    __m512i weights;
    if constexpr (T == 8) {
      int64_t two;
      __builtin_memcpy(&two, mine, 8);
      weights = _mm512_set1_epi64(two);
    } else {
      int32_t one;
      __builtin_memcpy(&one, mine, 4);
      weights = _mm512_set1_epi32(one);
    }
    sum[r] = Unit::dot(sum[r], weights, tokens);
  }
}

// All words of a whole tile.
template <class Unit, int T>
__attribute__((noinline)) void beside_rows(BesideTile<Unit>& tile, const typename Unit::Element* x,
                                           int64_t words) {
  constexpr int kUnits = BesideTile<Unit>::kUnits;
  constexpr int kEach = 16 / T;                              // units of a broadcast
  constexpr int kTurn = kUnits / kEach / (kBesideRows / 2);  // vectors with two rows
  constexpr int kOfRow = kUnits / 16, kParts = 2 * kOfRow;   // expansions likewise
  const char *next = tile.next, *next_mask = tile.next_mask;
  const int64_t next_bytes = tile.next_bytes;
  simd::F32 sum[kBesideRows];
#pragma GCC unroll 16
  for (int r = 0; r < kBesideRows; ++r) sum[r] = simd::zero();
  for (int64_t left = words; left > 0; --left) {
    const auto* w = tile.weights[tile.ready][0];
    auto* to = tile.weights[tile.ready ^ 1][0];
    const auto** values = left > 1 ? tile.values : tile.after_values;
    const uint64_t* mask = left > 1 ? tile.mask : tile.after_mask;
    for (int row = 0; row < kBesideRows; row += 2) {
      fetch_codes(next, next + next_bytes);
      next += next_bytes;
      const typename Unit::W* at[2] = {values[0], values[1]};
      const uint64_t bits[2] = {mask[0], mask[words]};
#pragma GCC unroll 8
      for (int v = 0; v < kTurn; ++v) {
        __builtin_prefetch(x + 16 * v + kUnits * T, 0, 3);
        multiply_units<Unit, T>(sum, w + v * kEach, x + 16 * v);
#pragma GCC unroll 8
        for (int i = 0; i < kParts; ++i) {
          if (i * kTurn / kParts != v) continue;
          const int r = i / kOfRow, s = i % kOfRow;
          expand_vector<Unit>(bits[r] >> (s * Unit::kVectorColumns), at[r],
                              to + r * kUnits + s * 16);
        }
      }
      values[0] = at[0];
      values[1] = at[1];
      values += 2;
      mask += 2 * words;
      to += 2 * kUnits;
      w += kTurn * kEach;
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
template <class Unit>
TAMIS_INLINE void expand_any(const MatrixView& w, uint64_t bits, const typename Unit::W*& p,
                             typename Unit::Element* out) {
  const auto* end = static_cast<const typename Unit::W*>(w.values) + w.nnz;
  if (end - p < 64 + Unit::kReadsPast) {
    Unit::template expand<true>(bits, p, out);
  } else {
    Unit::template expand<false>(bits, p, out);
  }
  p += simd::popcount(bits);
}

// Rows [row, row + rows) by themselves.
template <class Unit, int T>
__attribute__((noinline)) void beside_tail(const MatrixView& w, int64_t row, int rows,
                                           const typename Unit::Element* x,
                                           BesideTile<Unit>& tile) {
  const int64_t words = mask_words(w.cols);
  simd::F32 sum[kBesideRows];
#pragma GCC unroll 16
  for (int r = 0; r < kBesideRows; ++r) sum[r] = simd::zero();
  auto& weights = tile.weights[tile.ready];
  for (int64_t word = 0; word < words; ++word) {
    for (int r = 0; r < rows; ++r) {
      expand_any<Unit>(w, w.mask[(row + r) * words + word], tile.values[r], weights[r]);
    }
    for (int unit = 0; unit < BesideTile<Unit>::kUnits; unit += 16 / T, x += 16) {
      multiply_units<Unit, T>(sum, weights[0] + unit, x);
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

template <class Unit, int T>
void spmm_beside(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  using W = typename Unit::W;
  const auto* values = static_cast<const W*>(a.w.values);
  const int64_t words = mask_words(a.w.cols);
  const Expander<Unit, 1> starts(a.w);
  const auto place = [&](int64_t row) { return values + starts.row_values(row); };
  const auto whole = [&](int64_t row) {
    return row + kBesideRows <= row_end &&
           a.w.nnz - starts.row_values(row + kBesideRows) >= Unit::kReadsPast;
  };
  constexpr int64_t kSize = sizeof(W);
  const int64_t row_bytes = kSize * a.w.nnz / a.w.rows + words * 8;
  const int64_t ahead = ceil_div(kCodesAheadBytes, row_bytes * kBesideRows) * kBesideRows;
  const int64_t near = row_begin + ahead < row_end ? row_begin + ahead : row_end;
  fetch_codes(place(row_begin), place(near));
  fetch_codes(a.w.mask + row_begin * words, a.w.mask + near * words);
  BesideTile<Unit> tile;
  __builtin_memset(tile.weights, 0, sizeof tile.weights);
  for (int64_t token = 0; token < a.m; token += T) {
    const auto* x =
        static_cast<const typename Unit::Element*>(a.prepared) + token * units_of<Unit>(a.w);
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
        tile.next_bytes = kSize * (place(row + rows) - place(row)) / (words * (kBesideRows / 2));
        const uint64_t* mask = a.w.mask + row * words;
        for (int r = 0; !expanded && r < rows; ++r) {
          expand_any<Unit>(a.w, mask[r * words], tile.values[r], tile.weights[tile.ready][r]);
        }
        tile.mask = mask + 1;
        expanded = whole(row + kBesideRows);
        // What follows is the next tile, or nothing: these rows again.
        const int64_t after = expanded ? row + kBesideRows : row;
        for (int r = 0; r < kBesideRows; ++r) tile.after_values[r] = place(after + r);
        tile.after_mask = a.w.mask + after * words;
        beside_rows<Unit, T>(tile, x, words);
        for (int r = 0; r < kBesideRows; ++r) tile.values[r] = tile.after_values[r];
      } else {
        beside_tail<Unit, T>(a.w, row, rows, x, tile);
      }
      if constexpr (T == 8) join_tokens(tile.sums);
      write_square<typename Unit::X>(a, tile.sums[0], 16, row, rows, token,
                                     a.m - token < T ? a.m - token : T);
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_BESIDE_KERNELS(w, x, level, form, Unit, T)                                         \
  void spmm_bitmap_##w##_##x##_##level##_##form(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_beside<Unit, T>(a, begin, end);                                                         \
  }                                                                                              \
  void spmm_nm_##w##_##x##_##level##_##form(const SpmmArgs& a, int64_t begin, int64_t end) {     \
    spmm_beside<Unit, T>(a, begin, end);                                                         \
  }
