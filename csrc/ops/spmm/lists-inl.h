// y[m,n] = sum_k x[m,k] * w[n,k] for 3 to 32 tokens, leaving out the zeros of w.  w: bitmap, nm or
// csr8; accumulates f32, four chains per output.
//
// x: f32, [passes of T tokens][columns][T tokens], T 8, 16 or 32; zero past k, copies past m.
//
// Tile: one row, 256 columns, T tokens. Which columns the row stores of these becomes a list of
// bytes, one row ahead; then each weight, copied to all lanes from a load of four, is multiplied by
// a column of x from L1. A list of 256 columns ends once for four words: each end is a wrong guess.
//
// Memory: x of 256 columns, 8 to 32 KB, stays in L1 for a group of rows whose stored weights stay
// in L2; the next group's lines are fetched beside the products, evenly.
//
// Needs: mask bits past k clear (format check).   Tail: the last none to three weights of a list by
// masks, so that no column counts that a row does not store; values are never read past nnz.
//
// Cost, Zen 4, cycles for 64 columns of a row, 4096x4096, cold, f32 at 0.5, 0.3, 0.2, 0.1 kept: 8
// tokens 49, 33, 25, 16.5; 16 tokens 59, 40, 29.5, 19; 32 tokens 98, 62, 45, 27. In a loop of its
// own a weight takes 1.1 with 8 tokens and 1.4 with 16 (a load of 512 bits starts once a cycle),
// the end of a list 4 a word; listing takes 2.6 (vpcompressb and kmovq, 4 times a list).
// Tried: blocks of 128 columns, 11 more (32 tokens, whose x then leaves room in L1: 4 to 11);
// weights broadcast one by one, 0.2 to 0.4 a weight more; each byte of the list loaded by itself,
// 0.12 more with 16 tokens; a row's values fetched to L1 two rows ahead, 0 to 1 more; groups of
// 128, 192, 384 and 512 KB, the same; addresses without an index register, 1 to 7 more; lists
// stored 32 bytes at a time, 0.4 to 0.7 less where few are stored, 12 more at half density; one
// function for all of it, 2 more (registers spilled).
#pragma once

#include <type_traits>

#include "ops/spmm/pages.h"
#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

inline constexpr int64_t kListWords = 4;  // so that a column is a byte
inline constexpr int64_t kListColumns = 64 * kListWords;
inline constexpr int64_t kListGroupBytes = 256 * 1024;
inline constexpr int64_t kListGroupRows = 192;  // at most

// ---- the x form

template <int T>
int64_t lists_bytes(const SpmmArgs& a) {
  return ceil_div(a.m, T) * T * mask_words(a.w.cols) * 64 * 4;
}

template <class X, int T>
void prepare_lists(const SpmmArgs& a, void* prepared, int part, int parts) {
  constexpr int kSome = T < 16 ? T : 16;  // tokens at a time
  const int64_t words = mask_words(a.w.cols);
  const int64_t first = words * part / parts * 64, last = words * (part + 1) / parts * 64;
  for (int64_t token = 0; token < ceil_div(a.m, T) * T; token += kSome) {
    float* out = static_cast<float*>(prepared) + (token / T * T * words * 64 + token % T);
    for (int64_t column = first; column < last; column += 16) {
      const int64_t left = a.w.cols - column;
      const int there = static_cast<int>(left < 0 ? 0 : left < 16 ? left : 16);
      __m512i v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const int64_t row = token + i < a.m ? token + i : a.m - 1;
        const X* x = static_cast<const X*>(a.x) + row * a.x_stride + (there ? column : 0);
        v[i] = i < kSome ? _mm512_castps_si512(simd::load(x, there)) : _mm512_setzero_si512();
      }
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        float* mine = out + (column + i) * T;
        if constexpr (kSome == 16) {
          _mm512_store_si512(mine, v[i]);
        } else {
          _mm256_store_si256(reinterpret_cast<__m256i*>(mine), _mm512_castsi512_si256(v[i]));
        }
      }
    }
  }
}

// ---- lists

// Columns that a row stores of a block, then four zeros at least; and its weights as f32.
template <class W>
struct RowList {
  uint8_t columns[kListColumns + 64];
  alignas(64) float floats[kListColumns + 16];  // unless W is f32
};

// 0 to 255.
struct ListNumbers {
  alignas(64) uint8_t of[kListColumns] = {};
  constexpr ListNumbers() {
    for (int i = 0; i < kListColumns; ++i) of[i] = static_cast<uint8_t>(i);
  }
};
inline constexpr ListNumbers kListNumbers;

// Lists `count` words of a row by their masks; returns how many columns there are.
template <bool kWhole>
TAMIS_INLINE int64_t list_columns(const uint64_t* mask, int64_t count, uint8_t* out) {
  const uint8_t* const begin = out;
#pragma GCC unroll 4
  for (int64_t i = 0; i < kListWords; ++i) {
    const uint64_t bits = kWhole || i < count ? mask[i] : 0;
    const __m512i numbers = _mm512_load_si512(kListNumbers.of + 64 * i);
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi8(bits, numbers));
    out += simd::popcount(bits);
  }
  __builtin_memset(out, 0, 4);
  return out - begin;
}
// The same by the numbers of columns stored, and which.
template <bool kWhole>
TAMIS_INLINE int64_t list_columns(const uint8_t* counts, int64_t count, const uint8_t* columns,
                                  uint8_t* out) {
  const uint8_t* const begin = out;
#pragma GCC unroll 4
  for (int64_t i = 0; i < kListWords; ++i) {
    const int64_t n = kWhole || i < count ? counts[i] : 0;
    const __m512i mine = _mm512_maskz_loadu_epi8(_bzhi_u64(~uint64_t{0}, n), columns);
    _mm512_storeu_si512(out, _mm512_add_epi8(mine, _mm512_set1_epi8(static_cast<char>(64 * i))));
    columns += n;
    out += n;
  }
  __builtin_memset(out, 0, 4);
  return out - begin;
}

// n weights as f32, where they lie or copied to `floats`.
TAMIS_INLINE const float* list_values(const float* p, int64_t, float*) {
  return p;
}
template <class W>
TAMIS_INLINE const float* list_values(const W* p, int64_t n, float* floats) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) simd::store(simd::load(p + i), floats + i);
  simd::store(simd::load(p + i, static_cast<int>(n - i)), floats + i);
  return floats;
}

// ---- products

// T tokens: one vector of them, or two.
struct Lanes8 {
  static constexpr int kTokens = 8;
  using F = __m256;
  static TAMIS_INLINE F load(const float* p) { return _mm256_load_ps(p); }
  static TAMIS_INLINE void store(F v, float* p) { _mm256_store_ps(p, v); }
  static TAMIS_INLINE F zero() { return _mm256_setzero_ps(); }
  static TAMIS_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  static TAMIS_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static TAMIS_INLINE F fma_if(bool counts, F a, F b, F c) {
    return _mm256_mask3_fmadd_ps(a, b, c, static_cast<__mmask8>(-int{counts}));
  }
  static TAMIS_INLINE F four(__m128 v) { return _mm256_set_m128(v, v); }
  template <int kLane>
  static TAMIS_INLINE F lane(F v) {
    return _mm256_permute_ps(v, 0x55 * kLane);
  }
};
struct Lanes16 {
  static constexpr int kTokens = 16;
  using F = __m512;
  static TAMIS_INLINE F load(const float* p) { return _mm512_load_ps(p); }
  static TAMIS_INLINE void store(F v, float* p) { _mm512_store_ps(p, v); }
  static TAMIS_INLINE F zero() { return _mm512_setzero_ps(); }
  static TAMIS_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  static TAMIS_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static TAMIS_INLINE F fma_if(bool counts, F a, F b, F c) {
    return _mm512_mask3_fmadd_ps(a, b, c, static_cast<__mmask16>(-int{counts}));
  }
  static TAMIS_INLINE F four(__m128 v) { return _mm512_broadcast_f32x4(v); }
  template <int kLane>
  static TAMIS_INLINE F lane(F v) {
    return _mm512_permute_ps(v, 0x55 * kLane);
  }
};
template <int T>
struct ListLanes {
  using Lanes = std::conditional_t<T == 8, Lanes8, Lanes16>;
  static constexpr int kVectors = T / Lanes::kTokens;
};

// sum += lane kLane of four weights times a column of x.
template <int kLane, class Lanes, int V>
TAMIS_INLINE void add_column(typename Lanes::F (&sum)[V], typename Lanes::F four, const float* x) {
  const auto weight = Lanes::template lane<kLane>(four);
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    sum[v] = Lanes::fma(weight, Lanes::load(x + v * Lanes::kTokens), sum[v]);
  }
}
// The same if it counts: zero times a column would be NaN where that is not finite.
template <int kLane, class Lanes, int V>
TAMIS_INLINE void add_column_if(bool counts, typename Lanes::F (&sum)[V], typename Lanes::F four,
                                const float* x) {
  const auto weight = Lanes::template lane<kLane>(four);
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    sum[v] = Lanes::fma_if(counts, weight, Lanes::load(x + v * Lanes::kTokens), sum[v]);
  }
}

// sums += n weights times their columns of x.
template <int T>
TAMIS_INLINE void add_list(const uint8_t* column, const float* value, int64_t n, const float* x,
                           float* sums) {
  using Lanes = typename ListLanes<T>::Lanes;
  constexpr int V = ListLanes<T>::kVectors;
  typename Lanes::F sum[4][V];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    sum[0][v] = Lanes::load(sums + v * Lanes::kTokens);
    sum[1][v] = sum[2][v] = sum[3][v] = Lanes::zero();
  }
  uint32_t columns;  // one load for four: loads are the limit
  for (; n >= 4; n -= 4, column += 4, value += 4) {
    const auto four = Lanes::four(_mm_loadu_ps(value));
    __builtin_memcpy(&columns, column, 4);
    add_column<0, Lanes, V>(sum[0], four, x + (columns & 255) * T);
    add_column<1, Lanes, V>(sum[1], four, x + (columns >> 8 & 255) * T);
    add_column<2, Lanes, V>(sum[2], four, x + (columns >> 16 & 255) * T);
    add_column<3, Lanes, V>(sum[3], four, x + (columns >> 24) * T);
  }
  const auto last = static_cast<__mmask8>(simd::first(static_cast<int>(n)));
  const auto four = Lanes::four(_mm_maskz_loadu_ps(last, value));
  __builtin_memcpy(&columns, column, 4);
  add_column_if<0, Lanes, V>(n > 0, sum[0], four, x + (columns & 255) * T);
  add_column_if<1, Lanes, V>(n > 1, sum[1], four, x + (columns >> 8 & 255) * T);
  add_column_if<2, Lanes, V>(n > 2, sum[2], four, x + (columns >> 16 & 255) * T);
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const auto low = Lanes::add(sum[0][v], sum[1][v]), high = Lanes::add(sum[2][v], sum[3][v]);
    Lanes::store(Lanes::add(low, high), sums + v * Lanes::kTokens);
  }
}

// Rows that take turns over the blocks of x, and what to fetch meanwhile.
template <class W, int T>
struct ListGroup {
  static constexpr int kStride = T < 16 ? 16 : T;  // of sums
  const W* values;
  const uint8_t* columns;  // of csr8
  int64_t words;           // of a row
  int64_t rows;
  int64_t at[kListGroupRows];  // next value of each
  alignas(64) float sums[kListGroupRows][kStride];
  RowList<W> lists[2];
  // Of the next group: values, csr8's columns, each so many lines with a row and block, and how
  // many bytes lie between a row's masks or counts and the next group's.
  const char *next, *next_end, *next_columns, *next_columns_end;
  int64_t lines, column_lines, to_next;
};

TAMIS_INLINE void fetch_lines(const char*& at, const char* end, int64_t lines) {
  if (at >= end) return;
  for (int64_t i = 0; i < lines; ++i, at += 64) __builtin_prefetch(at, 0, kFetchToL2);
}

// A block of `count` words, whose masks or counts begin at `cells`, of all rows of a group.
template <class W, int T, class Cell, bool kWhole>
__attribute__((noinline)) void add_block(ListGroup<W, T>& g, const Cell* cells, int64_t count,
                                         const float* x) {
  const int64_t words = g.words, rows = g.rows, to_next = g.to_next;
  const char* next = g.next;
  const char* const next_end = g.next_end;
  const int64_t lines = g.lines;
  int64_t at = g.at[0];
  const auto list = [&](RowList<W>& out) {
    if constexpr (sizeof(Cell) == 8) return list_columns<kWhole>(cells, count, out.columns);
    if constexpr (sizeof(Cell) == 1) {
      return list_columns<kWhole>(cells, count, g.columns + at, out.columns);
    }
  };
  int64_t n = list(g.lists[0]);
  const float* values = list_values(g.values + at, n, g.lists[0].floats);
  g.at[0] = at + n;
  float* sums = g.sums[0];
  for (int64_t r = 0; r < rows; ++r, sums += g.kStride) {
    fetch_lines(next, next_end, lines);
    if constexpr (sizeof(Cell) == 1)
      fetch_lines(g.next_columns, g.next_columns_end, g.column_lines);
    __builtin_prefetch(reinterpret_cast<const char*>(cells) + to_next, 0, kFetchToL2);
    int64_t n_after = 0;
    const float* values_after = values;
    if (r + 1 < rows) {
      auto& mine = g.lists[(r + 1) % 2];
      cells += words;
      at = g.at[r + 1];
      n_after = list(mine);
      values_after = list_values(g.values + at, n_after, mine.floats);
      g.at[r + 1] = at + n_after;
    }
    add_list<T>(g.lists[r % 2].columns, values, n, x, sums);
    n = n_after;
    values = values_after;
  }
  g.next = next;
}

template <class W, class X, int T>
void spmm_lists(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const MatrixView& w = a.w;
  const int64_t words = mask_words(w.cols);
  const bool csr8 = w.format == Format::csr8;
  const int64_t cell_bytes = csr8 ? 1 : 8;
  const int64_t row_bytes =
      w.nnz * (static_cast<int64_t>(sizeof(W)) + (csr8 ? 1 : 0)) / w.rows + words * cell_bytes + 1;
  const int64_t fit = kListGroupBytes / row_bytes / 16 * 16;
  const int64_t group = fit < 16 ? 16 : fit < kListGroupRows ? fit : kListGroupRows;
  const Expander<F32Unit<W, X>, 1> starts(w);
  ListGroup<W, T> g;
  g.values = static_cast<const W*>(w.values);
  g.columns = csr8 ? w.col_bytes + w.rows * words : nullptr;
  g.words = words;
  const auto place = [&](int64_t row) {
    return reinterpret_cast<const char*>(g.values + starts.row_values(row));
  };
  const auto columns = [&](int64_t row) {
    return reinterpret_cast<const char*>(g.columns + starts.row_values(row));
  };
  PageWalks walks(w, row_begin, row_end);
  const int64_t first_end = row_begin + group < row_end ? row_begin + group : row_end;
  fetch_to_l2(place(row_begin), place(first_end) - place(row_begin));
  if (csr8) fetch_to_l2(columns(row_begin), columns(first_end) - columns(row_begin));
  for (int64_t row = row_begin; row < row_end; row += group) {
    const int64_t end = row + group < row_end ? row + group : row_end;
    const int64_t after = end + group < row_end ? end + group : row_end;
    const int64_t step_bytes = (end - row) * ceil_div(words, kListWords) * 64;
    g.rows = end - row;
    g.next = place(end);
    g.next_end = place(after);
    g.lines = ceil_div(g.next_end - g.next, step_bytes);
    if (csr8) {
      g.next_columns = columns(end);
      g.next_columns_end = columns(after);
      g.column_lines = ceil_div(g.next_columns_end - g.next_columns, step_bytes);
    }
    g.to_next = after > end ? group * words * cell_bytes : 0;
    walks.before(after);
    for (int64_t token = 0; token < a.m; token += T) {
      const float* x = static_cast<const float*>(a.prepared) + token * words * 64;
      __builtin_memset(g.sums, 0, sizeof g.sums);
      for (int64_t r = row; r < end; ++r) g.at[r - row] = starts.row_values(r);
      for (int64_t word = 0; word < words; word += kListWords, x += kListColumns * T) {
        const int64_t cell = row * words + word, count = words - word;
        if (csr8) {
          const uint8_t* counts = w.col_bytes + cell;
          count < kListWords ? add_block<W, T, uint8_t, false>(g, counts, count, x)
                             : add_block<W, T, uint8_t, true>(g, counts, count, x);
        } else {
          const uint64_t* masks = w.mask + cell;
          count < kListWords ? add_block<W, T, uint64_t, false>(g, masks, count, x)
                             : add_block<W, T, uint64_t, true>(g, masks, count, x);
        }
      }
      for (int64_t r = row; r < end; r += kSquare) {
        for (int64_t t = 0; t < T && token + t < a.m; t += 16) {
          const int64_t left = T - t < a.m - token - t ? T - t : a.m - token - t;
          write_square<X>(a, g.sums[r - row] + t, g.kStride, r, end - r, token + t, left);
        }
      }
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_LISTS_FORMS(x, level, X)                                                \
  const SpmmXForm spmm_lists_##x##_##level = {lists_bytes<16>, prepare_lists<X, 16>}; \
  const SpmmXForm spmm_widelists_##x##_##level = {lists_bytes<32>, prepare_lists<X, 32>};
#define TAMIS_OCTETLISTS_FORM(x, level, X) \
  const SpmmXForm spmm_octetlists_##x##_##level = {lists_bytes<8>, prepare_lists<X, 8>};
#define TAMIS_LISTS_KERNEL(format, w, x, level, form, W, X, T)                            \
  void spmm_##format##_##w##_##x##_##level##_##form(const SpmmArgs& a, int64_t row_begin, \
                                                    int64_t row_end) {                    \
    spmm_lists<W, X, T>(a, row_begin, row_end);                                           \
  }
#define TAMIS_LISTS_FORMATS(w, x, level, form, W, X, T)  \
  TAMIS_LISTS_KERNEL(bitmap, w, x, level, form, W, X, T) \
  TAMIS_LISTS_KERNEL(nm, w, x, level, form, W, X, T)     \
  TAMIS_LISTS_KERNEL(csr8, w, x, level, form, W, X, T)
#define TAMIS_LISTS_KERNELS(w, x, level, W, X)      \
  TAMIS_LISTS_FORMATS(w, x, level, lists, W, X, 16) \
  TAMIS_LISTS_FORMATS(w, x, level, widelists, W, X, 32)
