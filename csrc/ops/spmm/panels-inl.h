// y[m,n] = sum_k x[m,k] * w[n,k] for many tokens.  w: bitmap, nm, csr8 or csr, expanded once for up
// to kMostTokens tokens; x: panels; accumulates f32, one chain per output.
//
// x: even blocks of at most kUnits units; in each, panels [m / L][units][L], one lane per token: a
// unit is one column as f32 or two as a pair of bf16, so every element has four bytes and a weight
// is a four-byte broadcast. Zero past k. (Whole panels one after another, without blocks, lie a
// power of two apart and fight for the sets of L2: twice the time with zeros left out.)
//
// Tile: kPanelRows rows of w times one or two panels. The weights of a block's units of these rows
// are expanded to the stack, as rows; then each unit costs one load per panel and one product per
// row and panel, whose weight is broadcast from L1. No sums across lanes.
//
// Memory: a block's x, 768 KB at most, stays in L2 for the rows that take turns over it, and so do
// their sums. What a row needs of the next block is fetched into L2 behind its products.
//
// Needs: mask bits past k clear (format check); x finite where w is zero, else the sum may be NaN.
//
// Tail: rows past the last are zeros on the stack; values are never read past nnz.
//
// Cost, Zen 4: products at one a cycle, 59 (f32) or 118 (pairs) GMAC/s at 3.7 GHz, of which the
// loop reaches 98 %; 64 columns of a row 13 cycles to expand in cache, 18 cold (30 where the last
// line of a row's values and masks was not fetched), that is 2 % of the products of 512 tokens and
// pairs; y 0.4 a sum (in squares of 16, by shuffles of whole registers).
// Tried: rows whole, tokens in blocks whose x stays in L2: weights expanded for every 96 tokens,
// 0.81 of the peak for 0.90 now; fetching some lines with every 16 units: no change; nothing
// fetched: 6 % slower at 64 tokens; blocks of 192 or 288 units, 96 rows, 256 tokens: 0 to 2 %.
#pragma once

#include "base/simd/quads.h"
#ifdef __AVX512F__
#include "base/simd/transpose16.h"
#endif
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

inline constexpr int64_t kLanes = simd::kLanes;
inline constexpr int kPanelRows = kLanes == 16 ? 12 : 4;  // two panels: 24 or 8 accumulators
inline constexpr int64_t kUnits = 384;                    // of a row on the stack
inline constexpr int64_t kGroupRows = 96;                 // whose sums stay in L2, at most
inline constexpr int64_t kMostTokens = 512;               // of these

// x and w as f32, exact products.
template <class WType, class XType>
struct F32Unit {
  using W = WType;
  using X = XType;
  using Element = float;
  static constexpr int64_t kColumns = 1;
  static constexpr int64_t kReadsPast = simd::kReadsPast;

  // 64 columns of a row.
  template <bool kExact>
  static TAMIS_INLINE void expand(uint64_t bits, const W* p, Element* out) {
#pragma GCC unroll 8
    for (int s = 0; s < 64 / kLanes; ++s) {
      const auto mine = static_cast<uint32_t>(bits >> (s * kLanes)) & ((1u << kLanes) - 1);
      simd::store(simd::expand<kExact>(mine, p), out + s * kLanes);
      p += simd::popcount(mine);
    }
  }
  static TAMIS_INLINE void put(Element* out, int64_t column, W v) { out[column] = simd::to_f32(v); }
  static TAMIS_INLINE simd::F32 product(simd::F32 sum, const Element* w, simd::F32 x) {
    return simd::fma(simd::splat(*w), x, sum);
  }
  // Units [unit, unit + 4) of one token, as four lanes; 16 of them; and one unit, of which
  // `columns` exist.
  static TAMIS_INLINE Quad load4(const X* p) { return load_quad(p); }
  static TAMIS_INLINE simd::F32 load16(const X* p) { return simd::load(p); }
  static TAMIS_INLINE Element load1(const X* p, int64_t columns) {
    return columns > 0 ? simd::to_f32(*p) : 0.0f;
  }
};

// ---- the x form

template <class Unit>
int64_t units_of(const MatrixView& w) {
  return mask_words(w.cols) * 64 / Unit::kColumns;
}

template <class Unit>
int64_t panels_bytes(const SpmmArgs& a) {
  return ceil_div(a.m, kLanes) * kLanes * units_of<Unit>(a.w) * 4;
}

// Rows that take turns over a block of x: more where x comes from memory each time.
template <class Unit>
int64_t group_rows(const SpmmArgs& a) {
  constexpr int64_t kInCache = 8 << 20;
  return panels_bytes<Unit>(a) > kInCache ? kGroupRows : kGroupRows / 2;
}

// The block of a unit: blocks are as even as whole words allow.
template <class Unit>
struct PanelBlock {
  int64_t begin, units;
  int64_t at;  // where panel 0 begins

  TAMIS_INLINE PanelBlock(const SpmmArgs& a, int64_t unit) {
    constexpr int64_t kWordUnits = 64 / Unit::kColumns;
    const int64_t all = units_of<Unit>(a.w), words = mask_words(a.w.cols);
    const int64_t size = ceil_div(words, ceil_div(all, kUnits)) * kWordUnits;
    begin = unit / size * size;
    units = all - begin < size ? all - begin : size;
    at = begin * kLanes * ceil_div(a.m, kLanes);
  }
  TAMIS_INLINE int64_t panel() const { return units * kLanes; }  // elements
};

// Units [first, last): tokens [token, token + L) to neighbouring elements from `out` on, units
// `stride` apart. Tokens past m are copies, which nobody stores.
template <class Unit>
void prepare_tokens(const SpmmArgs& a, int64_t token, int64_t first, int64_t last,
                    typename Unit::Element* out, int64_t stride = kLanes) {
  using X = typename Unit::X;
  constexpr int64_t kColumns = Unit::kColumns;
  const X* x[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    x[i] = static_cast<const X*>(a.x) + (token + i < a.m ? token + i : a.m - 1) * a.x_stride;
  }
  int64_t u = first;
  const int64_t full = a.w.cols / kColumns < last ? a.w.cols / kColumns : last;
#ifdef __AVX512F__
  for (; u + 16 <= full; u += 16, out += 16 * stride) {
    __m512i v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) v[i] = _mm512_castps_si512(Unit::load16(x[i] + u * kColumns));
    transpose(v);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) _mm512_store_si512(out + i * stride, v[i]);
  }
#endif
  for (; u + 4 <= full; u += 4, out += 4 * stride) {
#pragma GCC unroll 4
    for (int g = 0; g < kLanes; g += 4) {
      Quad q[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) q[i] = Unit::load4(x[g + i] + u * kColumns);
      transpose(q);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store_quad(q[i], reinterpret_cast<float*>(out + i * stride + g));
    }
  }
  for (; u < last; ++u, out += stride) {
    const int64_t columns = a.w.cols - u * kColumns;
    for (int64_t i = 0; i < kLanes; ++i) {
      out[i] = columns > 0 ? Unit::load1(x[i] + u * kColumns, columns) : typename Unit::Element{};
    }
  }
}

template <class Unit>
void prepare_panels(const SpmmArgs& a, void* prepared, int part, int parts) {
  const int64_t words = mask_words(a.w.cols);
  const int64_t end = words * (part + 1) / parts * 64 / Unit::kColumns;
  for (int64_t u = words * part / parts * 64 / Unit::kColumns; u < end;) {
    const PanelBlock<Unit> block(a, u);
    const int64_t last = end < block.begin + block.units ? end : block.begin + block.units;
    auto* panels = static_cast<typename Unit::Element*>(prepared) + block.at;
    for (int64_t token = 0; token < a.m; token += kLanes) {
      prepare_tokens<Unit>(a, token, u, last,
                           panels + token / kLanes * block.panel() + (u - block.begin) * kLanes);
    }
    u = last;
  }
}

// ---- weights to the stack

// The mask of `count` columns of a word.
#ifdef __AVX512F__
TAMIS_INLINE uint64_t mask_of(const uint8_t* columns, int count) {
  const __m512i one = _mm512_set1_epi64(1);
  __m512i mine = _mm512_setzero_si512();
  for (int i = 0; i < count; i += 16) {
    const auto there = static_cast<__mmask16>(_bzhi_u32(0xffff, count - i));
    const __m128i shifts = _mm_maskz_loadu_epi8(there, columns + i);
    const __m512i low =
        _mm512_maskz_sllv_epi64(static_cast<__mmask8>(there), one, _mm512_cvtepu8_epi64(shifts));
    const __m512i high = _mm512_maskz_sllv_epi64(static_cast<__mmask8>(there >> 8), one,
                                                 _mm512_cvtepu8_epi64(_mm_bsrli_si128(shifts, 8)));
    mine = _mm512_ternarylogic_epi64(mine, low, high, 0xfe);
  }
  return static_cast<uint64_t>(_mm512_reduce_or_epi64(mine));
}
#else
TAMIS_INLINE uint64_t mask_of(const uint8_t* columns, int count) {
  uint64_t mine = 0;
  for (int i = 0; i < count; ++i) mine |= uint64_t{1} << (columns[i] & 63);
  return mine;
}
#endif

// kRows rows of w being expanded from left to right.
template <class Unit, int kRows>
struct Expander {
  using W = typename Unit::W;
  using Element = typename Unit::Element;

  const MatrixView& w;
  int64_t row;
  int count;          // rows that exist
  int64_t at[kRows];  // next value of each

  // Only to ask for masks and where rows begin.
  TAMIS_INLINE explicit Expander(const MatrixView& w_of) : w(w_of), row(0), count(0) {}
  TAMIS_INLINE Expander(const MatrixView& w_of, int64_t row_of, int64_t row_end)
      : w(w_of),
        row(row_of),
        count(static_cast<int>(row_end - row_of < kRows ? row_end - row_of : kRows)) {
    for (int r = 0; r < count; ++r) at[r] = row_values(row + r);
  }

  TAMIS_INLINE int64_t row_values(int64_t r) const { return row_start(w, r); }

  // The mask of a word whose first value is values[at[r]].
  TAMIS_INLINE uint64_t bits(int r, int64_t word) const {
    const int64_t words = mask_words(w.cols);
    if (w.format != Format::csr8) return w.mask[(row + r) * words + word];
    return mask_of(w.col_bytes + w.rows * words + at[r], w.col_bytes[(row + r) * words + word]);
  }

  // Words [word, word + words) of all rows; their masks too if asked for, which csr cannot be.
  template <int64_t kWidth>
  TAMIS_INLINE void expand(int64_t word, int64_t words, Element (*out)[kWidth],
                           uint64_t (*masks)[kWidth / 32] = nullptr) {
    for (int r = count; r < kRows; ++r) {
      for (int64_t u = 0; u < words * 64 / Unit::kColumns; ++u) out[r][u] = {};
      for (int64_t i = 0; masks && i < words; ++i) masks[r][i] = 0;
    }
    if (w.format == Format::csr) return scatter(word, words, out);
    for (int r = 0; r < count; ++r) {
      if (w.nnz - at[r] < words * 64 + Unit::kReadsPast) {
        expand_row<true>(r, word, words, out[r], masks ? masks[r] : nullptr);
      } else {
        expand_row<false>(r, word, words, out[r], masks ? masks[r] : nullptr);
      }
    }
  }

  template <bool kExact>
  TAMIS_INLINE void expand_row(int r, int64_t word, int64_t words, Element* out, uint64_t* masks) {
    const auto* p = static_cast<const W*>(w.values) + at[r];
    const uint64_t* mask =
        w.format == Format::csr8 ? nullptr : w.mask + (row + r) * mask_words(w.cols) + word;
    for (int64_t i = 0; i < words; ++i, out += 64 / Unit::kColumns) {
      const uint64_t mine = mask ? mask[i] : bits(r, word + i);
      Unit::template expand<kExact>(mine, p, out);
      const int n = simd::popcount(mine);
      p += n;
      if (!mask) at[r] += n;
      if (masks) masks[i] = mine;
    }
    at[r] = p - static_cast<const W*>(w.values);
  }

  template <int64_t kWidth>
  void scatter(int64_t word, int64_t words, Element (*out)[kWidth]) {
    const auto* values = static_cast<const W*>(w.values);
    const int64_t first = word * 64, last = first + words * 64;
    for (int r = 0; r < count; ++r) {
      for (int64_t u = 0; u < words * 64 / Unit::kColumns; ++u) out[r][u] = {};
      const int64_t end = w.row_offsets[row + r + 1];
      int64_t i = at[r];
      for (; i < end && w.col_indices[i] < last; ++i) {
        Unit::put(out[r], w.col_indices[i] - first, values[i]);
      }
      at[r] = i;
    }
  }
};

inline constexpr int kFetchToL2 = 2;

// All lines of [p, p + bytes).
TAMIS_INLINE void fetch_to_l2(const void* p, int64_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  for (uintptr_t line = at & ~uintptr_t{63}; line < at + static_cast<uintptr_t>(bytes);
       line += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(line), 0, kFetchToL2);
  }
}

// ---- the product

// Adds `units` units of kPanelRows rows to the sums of T panels, row r's at sums[r].
template <class Unit, int T>
TAMIS_INLINE void multiply(const typename Unit::Element (*w)[kUnits], int64_t units,
                           const typename Unit::Element* x, int64_t panel,
                           float (*sums)[2 * kLanes], bool first) {
  simd::F32 sum[kPanelRows][T];
#pragma GCC unroll 12
  for (int r = 0; r < kPanelRows; ++r) {
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) {
      sum[r][t] = first ? simd::zero() : simd::load(sums[r] + t * kLanes);
    }
  }
  for (int64_t u = 0; u < units; ++u) {
    simd::F32 tokens[T];
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) {
      tokens[t] = simd::load(reinterpret_cast<const float*>(x + t * panel + u * kLanes));
    }
#pragma GCC unroll 12
    for (int r = 0; r < kPanelRows; ++r) {
#pragma GCC unroll 2
      for (int t = 0; t < T; ++t) sum[r][t] = Unit::product(sum[r][t], &w[r][u], tokens[t]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kPanelRows; ++r) {
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) simd::store(sum[r][t], sums[r] + t * kLanes);
  }
}

// kRows rows of sums, tokens along them, to y, rows along it; `rows` of them exist.
template <class X, int kRows>
TAMIS_INLINE void write_rows(const SpmmArgs& a, const float* sums, int64_t stride, int64_t row,
                             int rows, int64_t token, int64_t tokens) {
  const auto* bias = static_cast<const X*>(a.bias);
  const simd::F32 start = bias ? simd::load(bias + row, rows) : simd::zero();
  for (int64_t t = 0; t < tokens; t += 4) {
    Quad quads[kRows / 4][4];
#pragma GCC unroll 4
    for (int g = 0; g < kRows / 4; ++g) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) quads[g][i] = load_quad(sums + (4 * g + i) * stride + t);
      transpose(quads[g]);
    }
    for (int i = 0; i < 4 && t + i < tokens; ++i) {
      Quad mine[kRows / 4];
#pragma GCC unroll 4
      for (int g = 0; g < kRows / 4; ++g) mine[g] = quads[g][i];
      simd::store(simd::add(simd::join(mine), start),
                  static_cast<X*>(a.y) + (token + t + i) * a.y_stride + row, rows);
    }
  }
}

// The same of a square of sums, at most kSquare rows and tokens.
#ifdef __AVX512F__
inline constexpr int64_t kSquare = 16;

template <class X>
TAMIS_INLINE void write_square(const SpmmArgs& a, const float* sums, int64_t stride, int64_t row,
                               int64_t rows, int64_t token, int64_t tokens) {
  const auto* bias = static_cast<const X*>(a.bias);
  const int there = static_cast<int>(rows < kSquare ? rows : kSquare);
  const simd::F32 start = bias ? simd::load(bias + row, there) : simd::zero();
  __m512i v[kSquare];
#pragma GCC unroll 16
  for (int r = 0; r < kSquare; ++r) v[r] = _mm512_load_si512(sums + r * stride);
  transpose(v);
#pragma GCC unroll 16
  for (int64_t t = 0; t < kSquare && t < tokens; ++t) {
    const simd::F32 sum = simd::add(_mm512_castsi512_ps(v[t]), start);
    X* y = static_cast<X*>(a.y) + (token + t) * a.y_stride + row;
    there == kSquare ? simd::store(sum, y) : simd::store(sum, y, there);
  }
}
#else
inline constexpr int64_t kSquare = 4;

template <class X>
TAMIS_INLINE void write_square(const SpmmArgs& a, const float* sums, int64_t stride, int64_t row,
                               int64_t rows, int64_t token, int64_t tokens) {
  write_rows<X, kSquare>(a, sums, stride, row, static_cast<int>(rows < kSquare ? rows : kSquare),
                         token, tokens < kSquare ? tokens : kSquare);
}
#endif

// Rows [row_begin, row_end), at most kGroupRows, and the next value of each.
template <class UnitType>
struct PanelRows {
  using Unit = UnitType;
  using Element = typename Unit::Element;

  const MatrixView& w;
  int64_t row_begin, row_end;
  Expander<Unit, 1> starts;
  int64_t at[kGroupRows];

  TAMIS_INLINE PanelRows(const MatrixView& w_of, int64_t begin, int64_t end)
      : w(w_of), row_begin(begin), row_end(end), starts(w_of) {
    for (int64_t r = begin; r < end; ++r) at[r - begin] = starts.row_values(r);
  }
  // Words [word, word + words) of rows [row, row + kPanelRows), those past the last as zeros.
  TAMIS_INLINE void expand(int64_t row, int64_t word, int64_t words,
                           Element (&out)[kPanelRows][kUnits]) {
    Expander<Unit, kPanelRows> expander(w, row, row_end);
    int64_t* of_rows = at + (row - row_begin);
    for (int r = 0; r < expander.count; ++r) expander.at[r] = of_rows[r];
    expander.expand(word, words, out);
    for (int r = 0; r < expander.count; ++r) of_rows[r] = expander.at[r];
  }
  // What `words` words from `word` on need of the row, or past its end of the row that the next
  // group has in its place, into L2: their masks, and as many values as usual and a line.
  TAMIS_INLINE void fetch(int64_t row, int64_t word, int64_t words) const {
    const int64_t all = mask_words(w.cols);
    const bool next = word == all;
    const int64_t after = row + (row_end - row_begin);
    if (next && after >= w.rows) return;
    const auto* p = static_cast<const typename Unit::W*>(w.values) +
                    (next ? starts.row_values(after) : at[row - row_begin]);
    const int64_t bytes = w.nnz * words / (w.rows * all) * static_cast<int64_t>(sizeof *p);
    fetch_to_l2(p, bytes + 64);
    if (w.mask) {
      fetch_to_l2(w.mask + (next ? after * all : row * all + word), words * 8);
    }
  }
};

// Rows times tokens [token, token + tokens), a multiple of L from the first panel on.
template <class Rows>
void panel_group(const SpmmArgs& a, Rows rows, int64_t token, int64_t tokens) {
  using Unit = typename Rows::Unit;
  using Element = typename Unit::Element;
  constexpr int64_t kPair = 2 * kLanes;
  const int64_t words = mask_words(a.w.cols), panels = ceil_div(tokens, kLanes);
  const int64_t row_begin = rows.row_begin, row_end = rows.row_end;
  alignas(64) Element weights[kPanelRows][kUnits];
  alignas(64) float sums[kMostTokens / kPair][kGroupRows][kPair];

  for (int64_t word = 0, here; word < words; word += here) {
    const PanelBlock<Unit> block(a, word * 64 / Unit::kColumns);
    const int64_t panel = block.panel();
    const auto* x = static_cast<const Element*>(a.prepared) + block.at + token / kLanes * panel;
    here = block.units * Unit::kColumns / 64;
    for (int64_t row = row_begin; row < row_end; row += kPanelRows) {
      rows.expand(row, word, here, weights);
      auto* mine = &sums[0][row - row_begin];
      int64_t p = 0;
      for (; p + 2 <= panels; p += 2, mine += kGroupRows) {
        multiply<Unit, 2>(weights, block.units, x + p * panel, panel, mine, word == 0);
      }
      if (p < panels)
        multiply<Unit, 1>(weights, block.units, x + p * panel, panel, mine, word == 0);
      for (int64_t r = row; r < row + kPanelRows && r < row_end; ++r) {
        rows.fetch(r, word + here, here);
      }
    }
  }
  if (words == 0) __builtin_memset(sums, 0, sizeof sums);
  for (int64_t t = 0; t < tokens; t += kSquare) {
    for (int64_t r = 0; r < row_end - row_begin; r += kSquare) {
      write_square<typename Unit::X>(a, sums[t / kPair][r] + t % kPair, kPair, row_begin + r,
                                     row_end - row_begin - r, token + t, tokens - t);
    }
  }
}

template <class Rows>
void spmm_panels(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const int64_t rows = group_rows<typename Rows::Unit>(a);
  for (int64_t row = row_begin; row < row_end; row += rows) {
    const int64_t end = row + rows < row_end ? row + rows : row_end;
    for (int64_t token = 0; token < a.m; token += kMostTokens) {
      panel_group(a, Rows(a.w, row, end), token,
                  a.m - token < kMostTokens ? a.m - token : kMostTokens);
    }
  }
}

}  // namespace
}  // namespace tamis

// One x form, and the kernels over it for the formats that store single weights.
#define TAMIS_PANELS_FORM(x, level, Unit) \
  const SpmmXForm spmm_panels_##x##_##level = {panels_bytes<Unit>, prepare_panels<Unit>};
#define TAMIS_PANELS_KERNELS(w, x, level, Unit)  \
  TAMIS_PANELS_KERNEL(bitmap, w, x, level, Unit) \
  TAMIS_PANELS_KERNEL(nm, w, x, level, Unit)     \
  TAMIS_PANELS_KERNEL(csr8, w, x, level, Unit)   \
  TAMIS_PANELS_KERNEL(csr, w, x, level, Unit)
#define TAMIS_PANELS_KERNEL(format, w, x, level, Unit)                                \
  void spmm_##format##_##w##_##x##_##level##_panels(const SpmmArgs& a, int64_t begin, \
                                                    int64_t end) {                    \
    spmm_panels<PanelRows<Unit>>(a, begin, end);                                      \
  }
