// y[m,n] = sum_k x[m,k] * w[n,k] for about 16 tokens.  w: bitmap or nm, expanded once for kLanes
// tokens; x: columns; accumulates f32, one chain per output.
//
// x: [m / L][units][L], one lane per token, a unit as in panels-inl.h. Zero past k.
//
// Tile: kColumnsRows rows of w times L tokens. Some words of the rows are expanded to the stack,
// then each unit costs one load of x and one product per row, whose weight is broadcast from L1. No
// sums across lanes, and a row's sums between two blocks of columns are one vector (of strips: one
// for each token).
//
// Memory: x of a block of columns stays in L1 beside the expanded weights for a group of rows,
// whose stored weights stay in L2 (kColumnsGroupBytes); the next group's are fetched beside the
// products, evenly: all of a tile's at once, while it is expanded, 5 % slower.
//
// Needs: mask bits past k clear (format check); x finite where w is zero, else the sum may be NaN.
//
// Tail: rows past the last are what was on the stack, and are not stored; values are never read
// past nnz.
//
// Cost, cycles for 64 columns of a row. Zen 4 with pairs of bf16: 43 to 44, strips 48, and 36.6
// with words expanded beside products, which it has instead (beside-inl.h). Emerald Rapids,
// products in f32: 64 that read memory, 38 cycles, 2 for x and 6 (bf16) or 12 (f32) to expand;
// measured 44 and 48, strips 49 and 55. Blocks of 16 and 20 KB, groups of 768: no gain. Tried: 12
// rows of 6 words, 14 of 6, 24 of 4: within 2 %; stored weights fetched into L1 before a tile's
// products: 3 % slower; panels of 8 tokens by two units, as int8quads has them, 26 to 28 for the 25
// of strips.
#pragma once

#include "ops/spmm/pages.h"
#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

inline constexpr int kColumnsRows = 16;
inline constexpr int64_t kColumnsBlockBytes = 10 * 1024;  // of x, and of expanded weights
inline constexpr int64_t kColumnsGroupBytes = 384 * 1024;
inline constexpr int64_t kColumnsGroupRows = 192;  // at most

template <class Unit>
int64_t columns_bytes(const SpmmArgs& a) {
  return ceil_div(a.m, kLanes) * kLanes * units_of<Unit>(a.w) * 4;
}

template <class Unit>
void prepare_columns(const SpmmArgs& a, void* prepared, int part, int parts) {
  const int64_t words = mask_words(a.w.cols), units = units_of<Unit>(a.w);
  const int64_t first = words * part / parts * 64 / Unit::kColumns;
  const int64_t last = words * (part + 1) / parts * 64 / Unit::kColumns;
  auto* out = static_cast<typename Unit::Element*>(prepared) + first * kLanes;
  for (int64_t token = 0; token < a.m; token += kLanes, out += units * kLanes) {
    prepare_tokens<Unit>(a, token, first, last, out);
  }
}

// Words of one row, whose first value is values[at], which moves on.
template <class Unit>
TAMIS_INLINE void expand_words(const MatrixView& w, const uint64_t* mask, int64_t words,
                               int64_t& at, typename Unit::Element* out) {
  const auto* values = static_cast<const typename Unit::W*>(w.values);
  const auto* p = values + at;
  if (w.nnz - at < words * 64 + Unit::kReadsPast) {
    for (int64_t i = 0; i < words; ++i, out += 64 / Unit::kColumns) {
      Unit::template expand<true>(mask[i], p, out);
      p += simd::popcount(mask[i]);
    }
  } else {
    for (int64_t i = 0; i < words; ++i, out += 64 / Unit::kColumns) {
      Unit::template expand<false>(mask[i], p, out);
      p += simd::popcount(mask[i]);
    }
  }
  at = p - values;
}

// Stored values of the next group, fetched `lines` at a time.
struct ColumnsFetch {
  const char *at, *end;
  int64_t lines;
};

// Adds `units` units, an even number, of a tile's rows.
template <class Unit, int64_t kWidth>
TAMIS_INLINE void multiply_columns(const typename Unit::Element (*w)[kWidth], int64_t units,
                                   const typename Unit::Element* x, float (*sums)[kLanes],
                                   bool first, ColumnsFetch& fetch) {
  simd::F32 sum[kColumnsRows];
#pragma GCC unroll 16
  for (int r = 0; r < kColumnsRows; ++r) sum[r] = first ? simd::zero() : simd::load(sums[r]);
  const int64_t lines = fetch.at < fetch.end ? fetch.lines : 0;
  const char* next = fetch.at;
  for (int64_t u = 0; u < units; u += 2) {
    for (int64_t i = 0; i < lines; ++i, next += 64) __builtin_prefetch(next, 0, kFetchToL2);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const simd::F32 tokens = simd::load(reinterpret_cast<const float*>(x + (u + i) * kLanes));
#pragma GCC unroll 16
      for (int r = 0; r < kColumnsRows; ++r) {
        sum[r] = Unit::product(sum[r], &w[r][u + i], tokens);
      }
    }
  }
  fetch.at = next;
#pragma GCC unroll 16
  for (int r = 0; r < kColumnsRows; ++r) simd::store(sum[r], sums[r]);
}

template <class Unit>
void spmm_columns(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  using Element = typename Unit::Element;
  using W = typename Unit::W;
  constexpr int64_t kWordUnits = 64 / Unit::kColumns;
  constexpr int64_t kWords = kColumnsBlockBytes / (kColumnsRows * kWordUnits * 4);
  const int64_t words = mask_words(a.w.cols);
  const int64_t row_bytes = a.w.nnz * static_cast<int64_t>(sizeof(W)) / a.w.rows + words * 8 + 1;
  const int64_t fit = kColumnsGroupBytes / row_bytes / kColumnsRows * kColumnsRows;
  const int64_t group = fit < kColumnsRows        ? kColumnsRows
                        : fit < kColumnsGroupRows ? fit
                                                  : kColumnsGroupRows;
  const auto* values = static_cast<const W*>(a.w.values);
  const Expander<Unit, 1> starts(a.w);
  const auto place = [&](int64_t row) {
    return reinterpret_cast<const char*>(values + starts.row_values(row));
  };
  alignas(64) Element weights[kColumnsRows][kWords * kWordUnits];
  alignas(64) float sums[kColumnsGroupRows][kLanes];
  PageWalks walks(a.w, row_begin, row_end);
  const int64_t first_end = row_begin + group < row_end ? row_begin + group : row_end;
  fetch_to_l2(place(row_begin), place(first_end) - place(row_begin));
  for (int64_t row = row_begin; row < row_end; row += group) {
    const int64_t end = row + group < row_end ? row + group : row_end;
    const int64_t after = end + group < row_end ? end + group : row_end;
    const int64_t pairs = ceil_div(end - row, kColumnsRows) * words * kWordUnits / 2;
    ColumnsFetch fetch{place(end), place(after), 0};
    if (pairs) fetch.lines = ceil_div(fetch.end - fetch.at, 64 * pairs);
    walks.before(after);
    for (int64_t token = 0; token < a.m; token += kLanes) {
      const auto* x = static_cast<const Element*>(a.prepared) + token * units_of<Unit>(a.w);
      int64_t at[kColumnsGroupRows];
      for (int64_t r = row; r < end; ++r) at[r - row] = starts.row_values(r);
      for (int64_t word = 0, here; word < words; word += here, x += here * kWordUnits * kLanes) {
        here = words - word < kWords ? words - word : kWords;
        for (int64_t r = row; r < end; r += kColumnsRows) {
          for (int64_t i = r; i < end && i < r + kColumnsRows; ++i) {
            const uint64_t* mask = a.w.mask + i * words + word;
            expand_words<Unit>(a.w, mask, here, at[i - row], weights[i - r]);
            if (i + group < row_end) __builtin_prefetch(mask + group * words, 0, kFetchToL2);
          }
          multiply_columns<Unit>(weights, here * kWordUnits, x, sums + (r - row), word == 0, fetch);
        }
      }
      if (words == 0) __builtin_memset(sums, 0, sizeof sums);
      for (int64_t r = row; r < end; r += kSquare) {
        write_square<typename Unit::X>(a, sums[r - row], kLanes, r, end - r, token, a.m - token);
      }
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_COLUMNS_FORM(x, level, Unit) \
  const SpmmXForm spmm_columns_##x##_##level = {columns_bytes<Unit>, prepare_columns<Unit>};
#define TAMIS_COLUMNS_KERNELS(w, x, level, Unit)                                                  \
  void spmm_bitmap_##w##_##x##_##level##_columns(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_columns<Unit>(a, begin, end);                                                            \
  }                                                                                               \
  void spmm_nm_##w##_##x##_##level##_columns(const SpmmArgs& a, int64_t begin, int64_t end) {     \
    spmm_columns<Unit>(a, begin, end);                                                            \
  }
