// y[m,n] = sum_k x[m,k] * w[n,k] for many tokens, leaving out the zeros of w.  w: bitmap, nm, csr8;
// x: panels (panels-inl.h); accumulates f32, two chains per output.
//
// Tile: one row of w, the columns of one mask word, up to four panels (64 tokens). A weight is
// broadcast once and multiplied by T vectors of x, which the products read from L1: T + 1 loads for
// T products. A loop ends where its mask does.
//
// Memory: kVisitRows rows take turns over the x of one word and four panels, 16 KB, and their sums,
// 8 KB, while the x of the next word is fetched; kSkipRows rows over one block of x (kUnits units),
// so that x comes from beyond L2 once for that many rows.
//
// Needs: mask bits past k clear (format check).   Zero weights: skipped; in pairs both must be
// zero.
//
// Cost, f32, per row, word and 64 tokens on Emerald Rapids: 3.8 cycles a weight, where loads need
// 2.5 and products 2, and 40 for the sums, the fetches and the mispredicted end of the loop.
// Tried: units sorted into 15 classes by which of four rows have weights, a loop for each, x from
// L2, 64 rows per visit of x: 1.0 to 1.4 times the time; 128 tokens a tile (x 32 KB): as fast;
// four chains instead of eight: as fast.
#pragma once

#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

inline constexpr int kVisitPanels = 4;
inline constexpr int64_t kVisitTokens = kVisitPanels * kLanes;
inline constexpr int64_t kVisitRows = 32;
inline constexpr int64_t kSkipRows = 256;
inline constexpr int64_t kSkipTokens = 256;
inline constexpr int kFetchToL1 = 3;

// The units of one mask word that are not empty.
template <class Unit>
TAMIS_INLINE uint64_t units_in(uint64_t bits) {
  if (Unit::kColumns == 1) return bits;
  return _pext_u64(bits | bits >> 1, 0x5555555555555555u);
}

// Rows [row, row + rows) in one block of x.
template <class Unit>
struct Visit {
  using W = typename Unit::W;
  using Element = typename Unit::Element;

  const MatrixView& w;
  const W* values;
  int64_t all_words;   // of a row
  int64_t next_bytes;  // of the values of a word, usually
  int64_t row = 0, rows = 0;
  int64_t word = 0, words = 0;        // of the block
  int64_t at[kVisitRows] = {};        // next value of each row
  const char* next[kVisitRows] = {};  // values needed later, fetched beside the first panels
};

template <class Unit, int T>
TAMIS_INLINE void add_unit(const typename Unit::Element* weight, const typename Unit::Element* x,
                           int64_t panel, simd::F32 (&sum)[T]) {
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    sum[t] =
        Unit::product(sum[t], weight, simd::load(reinterpret_cast<const float*>(x + t * panel)));
  }
}

// Adds one word of a row, whose mask is `bits` and whose values begin at p, to T panels.
template <class Unit, int T>
TAMIS_INLINE void add_word(uint64_t bits, const typename Unit::W* p, bool exact,
                           const typename Unit::Element* x, int64_t panel, simd::F32 (&sum)[T]) {
  using Element = typename Unit::Element;
  constexpr bool kAsStored = sizeof(typename Unit::W) == sizeof(Element);
  alignas(64) Element expanded[kAsStored ? 1 : 64 / Unit::kColumns];
  if constexpr (!kAsStored) {
    exact ? Unit::template expand<true>(bits, p, expanded)
          : Unit::template expand<false>(bits, p, expanded);
    bits = units_in<Unit>(bits);
  }
  const Element* weight = expanded;
  if constexpr (kAsStored) weight = p;
  // Two at a time, with sums of their own: T chains alone would wait for each other.
  const auto add = [&](simd::F32(&to)[T]) __attribute__((always_inline)) {
    const auto unit = static_cast<int64_t>(_tzcnt_u64(bits));
    const Element* mine = kAsStored ? weight++ : weight + unit;
    add_unit<Unit, T>(mine, x + unit * kLanes, panel, to);
    bits &= bits - 1;
  };
  simd::F32 other[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) other[t] = simd::zero();
  for (int pairs = simd::popcount(bits) / 2; pairs > 0; --pairs) {
    add(sum);
    add(other);
  }
  if (bits) add(sum);
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) sum[t] = simd::add(sum[t], other[t]);
}

// The same of csr8, values as stored: `count` of them, their columns at `columns`.
template <class Unit, int T>
TAMIS_INLINE void add_listed(const uint8_t* columns, int count, const typename Unit::W* p,
                             const typename Unit::Element* x, int64_t panel, simd::F32 (&sum)[T]) {
  const auto add = [&](int i, simd::F32(&to)[T]) __attribute__((always_inline)) {
    add_unit<Unit, T>(p + i, x + int64_t{columns[i]} * kLanes, panel, to);
  };
  simd::F32 other[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) other[t] = simd::zero();
  int i = 0;
  for (; i + 2 <= count; i += 2) {
    add(i, sum);
    add(i + 1, other);
  }
  if (i < count) add(i, sum);
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) sum[t] = simd::add(sum[t], other[t]);
}

// T panels at x times the words of a visit; sums: [rows, kVisitTokens].
template <class Unit, int T>
void visit_panels(const Visit<Unit>& v, const typename Unit::Element* x, int64_t panel, float* sums,
                  bool first, bool fetches, int64_t (&at)[kVisitRows]) {
  constexpr int64_t kWordUnits = 64 / Unit::kColumns;
  constexpr bool kAsStored = sizeof(typename Unit::W) == sizeof(typename Unit::Element);
  const MatrixView& w = v.w;
  const bool listed = w.format == Format::csr8;
  const uint8_t* columns = w.col_bytes + (listed ? w.rows * v.all_words : 0);
  Expander<Unit, static_cast<int>(kVisitRows)> masks(w);
  for (int64_t r = 0; r < v.rows; ++r) at[r] = v.at[r];
  for (int64_t i = 0; i < v.words; ++i, x += kWordUnits * kLanes) {
    const auto* later = reinterpret_cast<const char*>(x + kWordUnits * kLanes);
    for (int64_t r = 0; r < v.rows; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        for (int64_t line = 0; line < kWordUnits / kVisitRows; ++line) {
          __builtin_prefetch(later + t * panel * 4 + (r * kWordUnits / kVisitRows + line) * 64, 0,
                             kFetchToL1);
        }
      }
      for (int64_t b = 0; fetches && b < v.next_bytes; b += 64) {
        __builtin_prefetch(v.next[r] + i * v.next_bytes + b, 0, kFetchToL2);
      }
      float* mine = sums + r * kVisitTokens;
      simd::F32 sum[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        sum[t] = first && i == 0 ? simd::zero() : simd::load(mine + t * kLanes);
      }
      const auto* p = v.values + at[r];
      const int64_t of_row = (v.row + r) * v.all_words + v.word + i;
      const auto by_mask = [&]() __attribute__((always_inline)) {
        masks.row = v.row;
        masks.at[r] = at[r];
        const uint64_t bits = masks.bits(static_cast<int>(r), v.word + i);
        add_word<Unit, T>(bits, p, w.nnz - at[r] < 64 + Unit::kReadsPast, x, panel, sum);
        at[r] += simd::popcount(bits);
      };
      if constexpr (kAsStored) {
        if (listed) {
          const int count = w.col_bytes[of_row];
          add_listed<Unit, T>(columns + at[r], count, p, x, panel, sum);
          at[r] += count;
        } else {
          by_mask();
        }
      } else {
        by_mask();
      }
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) simd::store(sum[t], mine + t * kLanes);
    }
  }
}

// Rows [row_begin, row_end), at most kSkipRows, times tokens from the first lane of a panel on.
template <class Unit>
void skip_block(const SpmmArgs& a, int64_t row_begin, int64_t row_end, int64_t token,
                int64_t tokens) {
  using W = typename Unit::W;
  using Element = typename Unit::Element;
  constexpr int64_t kWords = kUnits * Unit::kColumns / 64;
  const int64_t words = mask_words(a.w.cols), panels = ceil_div(tokens, kLanes);
  alignas(64) float sums[kSkipRows * kSkipTokens];  // [visits, panels / 4, rows, kVisitTokens]
  int64_t at[kSkipRows];
  const auto of_visit = [&](int64_t row, int64_t p) {
    return sums + (row * kSkipTokens + p / kVisitPanels * kVisitRows * kVisitTokens);
  };
  const Expander<Unit, 1> starts(a.w);
  const auto row_start = [&](int64_t row) { return starts.row_values(row); };

  for (int64_t row = row_begin; row < row_end; ++row) at[row - row_begin] = row_start(row);
  if (words == 0) {
    for (float& sum : sums) sum = 0;
  }
  Visit<Unit> v{
      .w = a.w,
      .values = static_cast<const W*>(a.w.values),
      .all_words = words,
      .next_bytes = words ? a.w.nnz * static_cast<int64_t>(sizeof(W)) / (a.w.rows * words) + 1 : 0};
  for (v.word = 0; v.word < words; v.word += kWords) {
    v.words = words - v.word < kWords ? words - v.word : kWords;
    const PanelBlock<Unit> block(a, v.word * 64 / Unit::kColumns);
    const int64_t panel = block.panel();
    const auto* x = static_cast<const Element*>(a.prepared) + block.at + token / kLanes * panel;
    for (v.row = row_begin; v.row < row_end; v.row += kVisitRows) {
      v.rows = row_end - v.row < kVisitRows ? row_end - v.row : kVisitRows;
      // Visited next: the rows below, or the first ones in the next block.
      const int64_t below = v.row + kVisitRows < row_end ? v.row + kVisitRows : row_begin;
      for (int64_t r = 0; r < v.rows; ++r) {
        v.at[r] = at[v.row - row_begin + r];
        const int64_t row = below + r < row_end ? below + r : row_end - 1;
        v.next[r] = reinterpret_cast<const char*>(v.values + at[row - row_begin]);
      }
      int64_t after[kVisitRows];
      for (int64_t p = 0; p < panels;) {
        float* to = of_visit(v.row - row_begin, p);
        to += p % kVisitPanels * kLanes;
        const bool first = v.word == 0;
        if (panels - p >= 4) {
          visit_panels<Unit, 4>(v, x + p * panel, panel, to, first, p == 0, after);
          p += 4;
        } else if (panels - p >= 2) {
          visit_panels<Unit, 2>(v, x + p * panel, panel, to, first, p == 0, after);
          p += 2;
        } else {
          visit_panels<Unit, 1>(v, x + p * panel, panel, to, first, p == 0, after);
          p += 1;
        }
      }
      for (int64_t r = 0; r < v.rows; ++r) at[v.row - row_begin + r] = after[r];
    }
  }
  for (int64_t row = row_begin; row < row_end; row += 4) {
    const int rows = static_cast<int>(row_end - row < 4 ? row_end - row : 4);
    const int64_t in_visit = (row - row_begin) % kVisitRows;
    for (int64_t p = 0; p < panels; p += kVisitPanels) {
      const float* from = of_visit(row - row_begin - in_visit, p) + in_visit * kVisitTokens;
      const int64_t left = tokens - p * kLanes;
      write_rows<typename Unit::X, 4>(a, from, kVisitTokens, row, rows, token + p * kLanes,
                                      left < kVisitTokens ? left : kVisitTokens);
    }
  }
}

template <class Unit>
void spmm_skip(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; row += kSkipRows) {
    const int64_t end = row + kSkipRows < row_end ? row + kSkipRows : row_end;
    for (int64_t token = 0; token < a.m; token += kSkipTokens) {
      skip_block<Unit>(a, row, end, token, a.m - token < kSkipTokens ? a.m - token : kSkipTokens);
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_SKIP_FORM(x, level, Unit) \
  const SpmmXForm spmm_skip_##x##_##level = {panels_bytes<Unit>, prepare_panels<Unit>};
#define TAMIS_SKIP_KERNEL(format, w, x, level, Unit)                                               \
  void spmm_##format##_##w##_##x##_##level##_skip(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_skip<Unit>(a, begin, end);                                                                \
  }
#define TAMIS_SKIP_KERNELS(w, x, level, Unit)  \
  TAMIS_SKIP_KERNEL(bitmap, w, x, level, Unit) \
  TAMIS_SKIP_KERNEL(nm, w, x, level, Unit)     \
  TAMIS_SKIP_KERNEL(csr8, w, x, level, Unit)
