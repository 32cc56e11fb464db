// Rows of spmm_skip and the mask word they are at: which of their weights two rows add to the sums
// of a tile, in which order rows are paired, and what is fetched for the pairs ahead. See
// skip-inl.h.
#pragma once

#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

inline constexpr int64_t kSkipRows = 256;  // a row's number is a byte
inline constexpr int kFetchToL1 = 3;

// The units of one mask word that are not empty.
template <class Unit>
TAMIS_INLINE uint64_t units_in(uint64_t bits) {
  if (Unit::kColumns == 1) return bits;
  return _pext_u64(bits | bits >> 1, 0x5555555555555555u);
}

// x times one lane of each four of `weights`.
template <int kLane, int T>
TAMIS_INLINE void add_lane(simd::F32 weights, const float* x, simd::F32 (&sum)[T]) {
  const simd::F32 weight = _mm512_permute_ps(weights, 0x55 * kLane);
  __asm__("" : "+r"(x));  // a product with an index register is two operations
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) sum[t] = simd::fma(weight, simd::load(x + t * kLanes), sum[t]);
}

template <class Unit, int T>
TAMIS_INLINE void add_unit(const typename Unit::Element* weight, const typename Unit::Element* x,
                           simd::F32 (&sum)[T]) {
  __asm__("" : "+r"(x));
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    sum[t] =
        Unit::product(sum[t], weight, simd::load(reinterpret_cast<const float*>(x + t * kLanes)));
  }
}

// A unit that rows a and b both have.
template <class Unit, int T>
TAMIS_INLINE void add_shared(const typename Unit::Element* weight_a,
                             const typename Unit::Element* weight_b,
                             const typename Unit::Element* x, simd::F32 (&sum_a)[T],
                             simd::F32 (&sum_b)[T]) {
  __asm__("" : "+r"(x));
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    simd::F32 tokens = simd::load(reinterpret_cast<const float*>(x + t * kLanes));
    __asm__("" : "+v"(tokens));  // else both products load it
    sum_a[t] = Unit::product(sum_a[t], weight_a, tokens);
    sum_b[t] = Unit::product(sum_b[t], weight_b, tokens);
  }
}

// What is left of the weights of one row and word, from left to right: as stored beside a mask, as
// stored beside a list of columns, or expanded to units. kPacked: f32, side by side. of(): the
// weight of the lowest of some units, all of which are there.
template <class Unit>
struct MaskedWeights {
  static constexpr bool kPacked = true;
  const typename Unit::Element* weight;
  uint64_t bits;
  TAMIS_INLINE int64_t unit() const { return static_cast<int64_t>(_tzcnt_u64(bits)); }
  TAMIS_INLINE const typename Unit::Element* place() const { return weight; }
  TAMIS_INLINE const typename Unit::Element* of(uint64_t units) const {
    return weight + simd::popcount(bits & _blsmsk_u64(units)) - 1;
  }
  TAMIS_INLINE void next() {
    ++weight;
    bits &= bits - 1;
  }
};
template <class Unit>
struct ListedWeights {
  static constexpr bool kPacked = true;
  const typename Unit::Element* weight;
  const uint8_t* column;
  TAMIS_INLINE int64_t unit() const { return *column; }
  TAMIS_INLINE const typename Unit::Element* place() const { return weight; }
  TAMIS_INLINE void next() {
    ++weight;
    ++column;
  }
};
template <class Unit>
struct ExpandedWeights {
  static constexpr bool kPacked = false;
  const typename Unit::Element* weights;
  uint64_t bits;
  TAMIS_INLINE int64_t unit() const { return static_cast<int64_t>(_tzcnt_u64(bits)); }
  TAMIS_INLINE const typename Unit::Element* place() const { return weights + unit(); }
  TAMIS_INLINE const typename Unit::Element* of(uint64_t units) const {
    return weights + _tzcnt_u64(units);
  }
  TAMIS_INLINE void next() { bits &= bits - 1; }
};

// The next weight of a and the next of b, which are lanes of four.
template <int kLane, int T, class Weights>
TAMIS_INLINE void add_lanes(simd::F32 four_a, Weights& a, simd::F32 four_b, Weights& b,
                            const float* x, simd::F32 (&sum_a)[T], simd::F32 (&sum_b)[T]) {
  add_lane<kLane, T>(four_a, x + a.unit() * T * kLanes, sum_a);
  a.next();
  add_lane<kLane, T>(four_b, x + b.unit() * T * kLanes, sum_b);
  b.next();
}

// Two rows, of which b has as many weights or more, times the tile at x: chains of one row alone
// would wait for each other.
template <class Unit, int T, class Weights>
TAMIS_INLINE void add_pair(Weights a, int count_a, Weights b, int count_b,
                           const typename Unit::Element* x, simd::F32 (&sum_a)[T],
                           simd::F32 (&sum_b)[T]) {
  int left = count_b - count_a;
  if constexpr (Weights::kPacked) {
    for (; count_a >= 4; count_a -= 4) {
      const simd::F32 four_a = _mm512_broadcast_f32x4(_mm_loadu_ps(a.place()));
      const simd::F32 four_b = _mm512_broadcast_f32x4(_mm_loadu_ps(b.place()));
      add_lanes<0, T>(four_a, a, four_b, b, x, sum_a, sum_b);
      add_lanes<1, T>(four_a, a, four_b, b, x, sum_a, sum_b);
      add_lanes<2, T>(four_a, a, four_b, b, x, sum_a, sum_b);
      add_lanes<3, T>(four_a, a, four_b, b, x, sum_a, sum_b);
    }
  }
  for (; count_a > 0; --count_a) {
    add_unit<Unit, T>(a.place(), x + a.unit() * T * kLanes, sum_a);
    a.next();
    add_unit<Unit, T>(b.place(), x + b.unit() * T * kLanes, sum_b);
    b.next();
  }
  for (; left > 0; --left) {
    add_unit<Unit, T>(b.place(), x + b.unit() * T * kLanes, sum_b);
    b.next();
  }
}

// Two rows times the tile at x: the units that both have, then those of one.
template <class Unit, int T, class Weights>
TAMIS_INLINE void share_pair(const Weights& a, const Weights& b, const typename Unit::Element* x,
                             simd::F32 (&sum_a)[T], simd::F32 (&sum_b)[T]) {
  const auto x_of = [x](uint64_t units) { return x + _tzcnt_u64(units) * (T * kLanes); };
  for (uint64_t left = a.bits & b.bits; left; left &= left - 1) {
    add_shared<Unit, T>(a.of(left), b.of(left), x_of(left), sum_a, sum_b);
  }
  for (uint64_t left = a.bits & ~b.bits; left; left &= left - 1) {
    add_unit<Unit, T>(a.of(left), x_of(left), sum_a);
  }
  for (uint64_t left = b.bits & ~a.bits; left; left &= left - 1) {
    add_unit<Unit, T>(b.of(left), x_of(left), sum_b);
  }
}

// 0, 1, 2, ...
struct RowNumbers {
  alignas(64) uint8_t of[kSkipRows] = {};
  constexpr RowNumbers() {
    for (int64_t r = 0; r < kSkipRows; ++r) of[r] = static_cast<uint8_t>(r);
  }
};

// Rows [row, row + rows) and the word they are at. Pairs are of neighbours in order[], or of rows
// 2i and 2i + 1 if they share loads: then in which order a row adds depends on the other, so it
// must not depend on which thread has them. A row that stores nothing makes their number even.
template <class Unit>
struct SkipRows {
  using W = typename Unit::W;
  using Element = typename Unit::Element;

  const MatrixView& w;
  int64_t words;  // of a row
  int64_t row, rows, word = 0;
  bool shares;
  int64_t at[kSkipRows + 2] = {};      // next value of each
  uint64_t masks[kSkipRows + 2] = {};  // of each in the word, unless listed()
  // Of each row, units that have weights in the word; past the last 255.
  alignas(64) uint8_t units[kSkipRows];
  uint8_t order[kSkipRows + 64] = {};  // rows by units, unless they share loads

  // Rows [row_of, row_end) as far as they fit.
  SkipRows(const MatrixView& w_of, int64_t row_of, int64_t row_end, bool shares_loads)
      : w(w_of),
        words(mask_words(w_of.cols)),
        row(row_of),
        rows(row_end - row_of < kSkipRows ? row_end - row_of : kSkipRows),
        shares(shares_loads) {
    const Expander<Unit, 1> starts(w);
    for (int64_t r = 0; r < rows; ++r) at[r] = starts.row_values(row + r);
    __builtin_memset(units, 0xff, sizeof units);
    if (rows > 0 && rows % 2) units[rows] = 0;
  }

  TAMIS_INLINE const W* values() const { return static_cast<const W*>(w.values); }
  TAMIS_INLINE int64_t cell(int64_t r) const { return (row + r) * words + word; }
  TAMIS_INLINE const uint8_t* columns() const { return w.col_bytes + w.rows * words; }
  TAMIS_INLINE int64_t pairs() const { return (rows + 1) / 2; }
  // Whether products read the list of columns as it is stored, and no mask.
  TAMIS_INLINE bool listed() const {
    return !shares && sizeof(W) == sizeof(Element) && w.format == Format::csr8;
  }
  // The first value past the word, once it is read.
  TAMIS_INLINE int64_t end(int64_t r) const {
    return at[r] + (listed() ? units[r] : simd::popcount(masks[r]));
  }

  // Reads what the word has and orders it.
  void read() {
    Expander<Unit, 1> of_row(w);
    for (int64_t r = 0; r < rows; ++r) {
      if (listed()) {
        units[r] = w.col_bytes[cell(r)];
      } else {
        of_row.row = row + r;
        of_row.at[0] = at[r];
        masks[r] = of_row.bits(0, word);
        units[r] = static_cast<uint8_t>(simd::popcount(units_in<Unit>(masks[r])));
      }
    }
    if (!shares) order_by_units();
  }
  // Rows of each number of units, the fewest first, from left to right.
  void order_by_units() {
    constexpr int kGroups = kSkipRows / 64;
    static_assert(kSkipRows % 64 == 0 && kSkipRows <= 256, "a row's number is a byte");
    static constexpr RowNumbers kNumbers;
    __m512i mine[kGroups], numbers[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      mine[g] = _mm512_load_si512(units + 64 * g);
      numbers[g] = _mm512_load_si512(kNumbers.of + 64 * g);
    }
    int64_t placed = 0;
    for (int n = 0; placed < 2 * pairs(); ++n) {
      const __m512i wanted = _mm512_set1_epi8(static_cast<char>(n));
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        const uint64_t there = _mm512_cmpeq_epi8_mask(mine[g], wanted);
        _mm512_storeu_si512(order + placed, _mm512_maskz_compress_epi8(there, numbers[g]));
        placed += simd::popcount(there);
      }
    }
  }
  // Goes to a word, the first one or the next.
  void begin(int64_t at_word) {
    for (int64_t r = 0; at_word && r < rows; ++r) at[r] = end(r);
    word = at_word;
    read();
  }

  // What two rows need for the next word, whose values begin at value `begin` of each: usually
  // `bytes` of them and at most a line more (the first one's line is there), and their columns.
  TAMIS_INLINE void fetch(const int64_t (&of_rows)[2], const int64_t (&begin)[2],
                          int64_t bytes) const {
    const auto *a = reinterpret_cast<const char*>(values() + begin[0]),
               *b = reinterpret_cast<const char*>(values() + begin[1]);
    for (int64_t line = 64; line <= bytes + 64; line += 64) {
      __builtin_prefetch(a + line, 0, kFetchToL2);
      __builtin_prefetch(b + line, 0, kFetchToL2);
    }
    if (w.format == Format::csr8) {
#pragma GCC unroll 2
      for (int p = 0; p < 2; ++p) {
        __builtin_prefetch(columns() + at[of_rows[p]] + 64, 0, kFetchToL2);
        __builtin_prefetch(w.col_bytes + cell(of_rows[p]) + 64, 0, kFetchToL2);
      }
    } else if (word % 8 == 0) {
      __builtin_prefetch(w.mask + cell(of_rows[0]) + 8, 0, kFetchToL2);
      __builtin_prefetch(w.mask + cell(of_rows[1]) + 8, 0, kFetchToL2);
    }
  }
  // What the products of this word read from values a and b on, to L1.
  TAMIS_INLINE void fetch_near(int64_t a, int64_t b, int64_t bytes) const {
    const auto *of_a = reinterpret_cast<const char*>(values() + a),
               *of_b = reinterpret_cast<const char*>(values() + b);
    for (int64_t line = 0; line < bytes + 64; line += 64) {
      __builtin_prefetch(of_a + line, 0, kFetchToL1);
      __builtin_prefetch(of_b + line, 0, kFetchToL1);
    }
    if (listed()) {
      __builtin_prefetch(columns() + a, 0, kFetchToL1);
      __builtin_prefetch(columns() + b, 0, kFetchToL1);
    }
  }

  // The word of rows a and b times the tile at x.
  template <int T>
  TAMIS_INLINE void add(int64_t a, int64_t b, const Element* x, simd::F32 (&sum_a)[T],
                        simd::F32 (&sum_b)[T]) const {
    if constexpr (sizeof(W) == sizeof(Element)) {
      if (listed()) {
        using Weights = ListedWeights<Unit>;
        add_pair<Unit, T>(Weights{values() + at[a], columns() + at[a]}, units[a],
                          Weights{values() + at[b], columns() + at[b]}, units[b], x, sum_a, sum_b);
      } else {
        using Weights = MaskedWeights<Unit>;
        add_pair<Unit, T>(Weights{values() + at[a], masks[a]}, units[a],
                          Weights{values() + at[b], masks[b]}, units[b], x, sum_a, sum_b);
      }
    } else {
      alignas(64) Element expanded[2][64 / Unit::kColumns];
      using Weights = ExpandedWeights<Unit>;
      add_pair<Unit, T>(Weights{expanded[0], expand(at[a], masks[a], expanded[0])}, units[a],
                        Weights{expanded[1], expand(at[b], masks[b], expanded[1])}, units[b], x,
                        sum_a, sum_b);
    }
  }
  // The same of rows whose values begin at_a and at_b, with these masks.
  template <int T>
  TAMIS_INLINE void add_sharing(int64_t at_a, uint64_t mask_a, int64_t at_b, uint64_t mask_b,
                                const Element* x, simd::F32 (&sum_a)[T],
                                simd::F32 (&sum_b)[T]) const {
    if constexpr (sizeof(W) == sizeof(Element)) {
      using Weights = MaskedWeights<Unit>;
      share_pair<Unit, T>(Weights{values() + at_a, mask_a}, Weights{values() + at_b, mask_b}, x,
                          sum_a, sum_b);
    } else {
      alignas(64) Element expanded[2][64 / Unit::kColumns];
      using Weights = ExpandedWeights<Unit>;
      share_pair<Unit, T>(Weights{expanded[0], expand(at_a, mask_a, expanded[0])},
                          Weights{expanded[1], expand(at_b, mask_b, expanded[1])}, x, sum_a, sum_b);
    }
  }
  TAMIS_INLINE uint64_t expand(int64_t values_at, uint64_t mask, Element* out) const {
    w.nnz - values_at < 64 + Unit::kReadsPast
        ? Unit::template expand<true>(mask, values() + values_at, out)
        : Unit::template expand<false>(mask, values() + values_at, out);
    return units_in<Unit>(mask);
  }
};

}  // namespace
}  // namespace tamis
