// y[m,n] = sum_k x[m,k] * w[n,k] for many tokens.  w: bitmap, nm, csr8 or csr, expanded once and
// used for up to kMostTokens tokens; x: panels; accumulates f32, one chain per output.
//
// x: blocks of kUnits units; in each, panels [m / L][units][L], one lane per token: a unit is one
// column as f32 or two as a pair of bf16, so every element has four bytes and a weight is a
// four-byte broadcast. Zero past k and m. (Whole panels one after another, without blocks, lie a
// power of two apart and fight for the sets of L2: twice the time with zeros left out.)
//
// Tile: kRows rows of w times one or two panels. The weights of kUnits units of these rows are
// expanded to the stack, as rows; then each unit costs one load per panel and one product per row
// and panel, whose weight is broadcast from L1. No sums across lanes.
//
// Needs: mask bits past k clear (format check); x finite where w is zero, else the sum may be NaN.
//
// Tail: rows past the last are zeros on the stack; values are never read past nnz.
//
// Cost per 64 columns of a row (Zen 4): about 2.5 cycles a step to expand and store, then 64 / L
// products a token at one a cycle (bf16 pairs: half). Peak 59 (f32), 118 (pairs) GMAC/s at 3.7 GHz.
#pragma once

#include "base/simd/quads.h"
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

inline constexpr int64_t kLanes = simd::kLanes;
inline constexpr int kPanelRows = kLanes == 16 ? 12 : 4;  // two panels: 24 or 8 accumulators
inline constexpr int64_t kUnits = 512;                    // of a row on the stack
inline constexpr int64_t kMostTokens = 512;               // sums of kPanelRows rows on the stack
inline constexpr int64_t kBlockBytes = 1 << 20;           // of x, to stay in L2 for all rows

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
  // Units [unit, unit + 4) of one token, as four lanes; and one unit, of which `columns` exist.
  static TAMIS_INLINE Quad load4(const X* p) { return load_quad(p); }
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

// Where panel 0 of a block begins, and how many units the block has.
template <class Unit>
struct PanelBlock {
  int64_t begin, units, at;

  TAMIS_INLINE PanelBlock(const SpmmArgs& a, int64_t unit)
      : begin(unit / kUnits * kUnits),
        units(units_of<Unit>(a.w) - begin < kUnits ? units_of<Unit>(a.w) - begin : kUnits),
        at(begin * kLanes * ceil_div(a.m, kLanes)) {}
  TAMIS_INLINE int64_t panel() const { return units * kLanes; }  // elements
};

// Units [first, last): four tokens to four neighbouring elements from `out` on, units `stride`
// apart. Tokens past m are zeros.
template <class Unit>
void prepare_tokens(const SpmmArgs& a, int64_t token, int64_t first, int64_t last,
                    typename Unit::Element* out, int64_t stride = kLanes) {
  using X = typename Unit::X;
  constexpr int64_t kColumns = Unit::kColumns;
  const int64_t there = a.m - token < 4 ? a.m - token : 4;
  if (there <= 0) {
    for (int64_t u = first; u < last; ++u, out += stride) {
      for (int i = 0; i < 4; ++i) out[i] = {};
    }
    return;
  }
  const X* x[4];
  for (int i = 0; i < 4; ++i) {
    x[i] = static_cast<const X*>(a.x) + (token + (i < there ? i : 0)) * a.x_stride;
  }
  int64_t u = first;
  const int64_t full = a.w.cols / kColumns < last ? a.w.cols / kColumns : last;
  for (; u + 4 <= full; u += 4) {
    Quad q[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) q[i] = Unit::load4(x[i] + u * kColumns);
    transpose(q);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i, out += stride) store_quad(q[i], reinterpret_cast<float*>(out));
  }
  for (; u < last; ++u, out += stride) {
    const int64_t columns = a.w.cols - u * kColumns;
    for (int i = 0; i < 4; ++i) {
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
    for (int64_t token = 0; token < ceil_div(a.m, kLanes) * kLanes; token += 4) {
      prepare_tokens<Unit>(
          a, token, u, last,
          panels + token / kLanes * block.panel() + (u - block.begin) * kLanes + token % kLanes);
    }
    u = last;
  }
}

// ---- weights to the stack

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

  TAMIS_INLINE int64_t row_values(int64_t r) const {
    return w.format == Format::nm ? r * (w.cols / w.of * w.keep) : w.row_offsets[r];
  }

  // The mask of a word whose first value is values[at[r]].
  TAMIS_INLINE uint64_t bits(int r, int64_t word) const {
    const int64_t words = mask_words(w.cols);
    if (w.format != Format::csr8) return w.mask[(row + r) * words + word];
    const uint8_t* columns = w.col_bytes + w.rows * words + at[r];
    uint64_t mine = 0;
    for (int i = 0; i < w.col_bytes[(row + r) * words + word]; ++i) {
      mine |= uint64_t{1} << (columns[i] & 63);
    }
    return mine;
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
    const auto* values = static_cast<const W*>(w.values);
    for (int r = 0; r < count; ++r) {
      for (int64_t i = 0; i < words; ++i) {
        const uint64_t mine = bits(r, word + i);
        Element* to = out[r] + i * (64 / Unit::kColumns);
        if (w.nnz - at[r] < 64 + Unit::kReadsPast) {
          Unit::template expand<true>(mine, values + at[r], to);
        } else {
          Unit::template expand<false>(mine, values + at[r], to);
        }
        at[r] += simd::popcount(mine);
        if (masks) masks[r][i] = mine;
      }
    }
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

// Part i of n of the bytes [begin, end) that come next in memory, into L2.
TAMIS_INLINE void fetch_part(const void* begin, const void* end, int64_t i, int64_t n) {
  const auto* p = static_cast<const char*>(begin);
  const int64_t bytes = static_cast<const char*>(end) - p;
  for (int64_t b = bytes * i / n; b < bytes * (i + 1) / n; b += 64) {
    __builtin_prefetch(p + b, 0, kFetchToL2);
  }
}

// ---- the product

// Adds `units` units of kPanelRows rows to the sums of T panels; row r's sums are at r * stride.
template <class Unit, int T>
TAMIS_INLINE void multiply(const typename Unit::Element (*w)[kUnits], int64_t units,
                           const typename Unit::Element* x, int64_t panel, float* sums,
                           int64_t stride, bool first) {
  simd::F32 sum[kPanelRows][T];
#pragma GCC unroll 12
  for (int r = 0; r < kPanelRows; ++r) {
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) {
      sum[r][t] = first ? simd::zero() : simd::load(sums + r * stride + t * kLanes);
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
    for (int t = 0; t < T; ++t) simd::store(sum[r][t], sums + r * stride + t * kLanes);
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

// Tokens [token, token + tokens), a multiple of L from the first panel on, for rows of w.
template <class Unit>
void panel_block(const SpmmArgs& a, int64_t row_begin, int64_t row_end, int64_t token,
                 int64_t tokens) {
  using Element = typename Unit::Element;
  using W = typename Unit::W;
  const int64_t words = mask_words(a.w.cols);
  const int64_t panels = ceil_div(tokens, kLanes), stride = panels * kLanes;
  alignas(64) Element weights[kPanelRows][kUnits];
  alignas(64) float sums[kPanelRows * kMostTokens];
  constexpr int64_t kWords = kUnits * Unit::kColumns / 64;

  for (int64_t row = row_begin; row < row_end; row += kPanelRows) {
    Expander<Unit, kPanelRows> expander(a.w, row, row_end);
    const auto* values = static_cast<const W*>(a.w.values);
    const int64_t next = row + kPanelRows < a.w.rows ? row + kPanelRows : a.w.rows;
    const int64_t after = next + kPanelRows < a.w.rows ? next + kPanelRows : a.w.rows;
    const W* next_values = values + expander.row_values(next);
    const W* after_values = values + expander.row_values(after);
    const int64_t steps = ceil_div(words, kWords);
    for (int64_t word = 0; word < words; word += kWords) {
      const int64_t here = words - word < kWords ? words - word : kWords;
      expander.expand(word, here, weights);
      fetch_part(next_values, after_values, word / kWords, steps);
      if (a.w.mask) {
        fetch_part(a.w.mask + next * words, a.w.mask + after * words, word / kWords, steps);
      }
      const PanelBlock<Unit> block(a, word * 64 / Unit::kColumns);
      const int64_t panel = block.panel();
      const auto* x = static_cast<const Element*>(a.prepared) + block.at + token / kLanes * panel;
      int64_t p = 0;
      for (; p + 2 <= panels; p += 2) {
        multiply<Unit, 2>(weights, block.units, x + p * panel, panel, sums + p * kLanes, stride,
                          word == 0);
      }
      if (p < panels) {
        multiply<Unit, 1>(weights, block.units, x + p * panel, panel, sums + p * kLanes, stride,
                          word == 0);
      }
    }
    if (words == 0) {
      for (int64_t i = 0; i < kPanelRows * stride; ++i) sums[i] = 0;
    }
    write_rows<typename Unit::X, kPanelRows>(a, sums, stride, row, expander.count, token, tokens);
  }
}

template <class Unit>
void spmm_panels(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const int64_t token_bytes = units_of<Unit>(a.w) * 4 + 1;
  int64_t block = kBlockBytes / token_bytes / (2 * kLanes) * (2 * kLanes);
  block = block < 2 * kLanes ? 2 * kLanes : block > kMostTokens ? kMostTokens : block;
  for (int64_t token = 0; token < a.m; token += block) {
    panel_block<Unit>(a, row_begin, row_end, token, a.m - token < block ? a.m - token : block);
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
    spmm_panels<Unit>(a, begin, end);                                                 \
  }
