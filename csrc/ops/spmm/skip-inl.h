// y[m,n] = sum_k x[m,k] * w[n,k] for many tokens, leaving out the zeros of w.  w: bitmap, nm, csr8;
// accumulates f32, two chains per output.
//
// x: passes of kSkipTokens tokens; in each [words][tiles][units][lanes of a tile], a tile being up
// to kTileVectors vectors of tokens side by side and a unit as in panels-inl.h. Zero past k and m.
// So the tokens of a unit are one piece, found by one address.
//
// Tile: two rows of w, the columns of one mask word, one tile of tokens. A weight is broadcast once
// and multiplied by T vectors of x, which the products read from L1: T loads for T products, and
// one for every four packed weights.
// The rows of a block are sorted by what they store of a word, so a pair's loop ends where the one
// before it did: unsorted, each end was 20 cycles of a wrong guess.
// Where loads are the limit (Zen 4), neighbours share them instead: first the columns that both
// have, their x loaded once, then those of one. Which weight belongs to a column is counted in the
// mask, so nothing is packed or sorted. A wrong guess about an end costs little there, as masks are
// known a pair ahead and products of some 80 cycles are still on their way.
//
// Memory: a block of kSkipRows rows, or two, take turns over the x of one word and tile, at most
// 32 KB, so x comes from beyond L1 once for that many rows; their sums stay in L2. The next word's
// values, masks and x are fetched into L2 beside the first tile, a pair's values and masks into L1
// one pair ahead, y beside the last word.
//
// Needs: mask bits past k clear (format check).   Zero weights: skipped; in pairs of bf16 both must
// be zero.
//
// Cost, f32, Emerald Rapids at 3.0 GHz, ms at 4096x4096 and 256 tokens: 33.0 at half density, 17.3
// at a fifth, 11.9 at a tenth. FMAs alone would take 22.4, 8.9 and 4.5, but one that reads memory
// starts every 0.595 cycles there (loads alone 0.52, FMAs alone 0.50; 0.55 where three of four read
// memory, 0.50 where half do), 0.625 to 0.65 with the weights: 28, 11 and 5.6. The rest: sums from
// and to L2 1.5 to 2, x and y 1.3, lines of x that L1 lost 0.6, order and fetching 1 to 2. No gain:
// sums added at the end, or fetched a pair or two ahead; masks of eight words read at once; values
// fetched to L1 beside the first tile only. A load for each weight: 2.5 % more.
// Tried: columns that both rows have first, their x loaded once, rows sorted: 35 at half density,
// the same below. All of a word's sizes unrolled, entered by a jump: 50. Values and lists of
// columns copied in that order: 41 and 14. Two words and half the tokens a tile: half the sums'
// lines, 13.1 at 0.1, 42 at half density. Sums fetched ahead: nothing.
//
// Zen 4 at 3.7 GHz, one load of 512 bits and one product a cycle: at half density 45 ms, 21.5 at a
// fifth, 13.6 at a tenth (50.5, 23.9 and 15.4 without sharing), of which products alone
// are 36.4, 14.6 and 7.3. For two rows, a word and a tile, where products take 512 cycles, 541 with
// x and sums that stay in L1; some 25 more for sums from and to L2, 40 for fetching and lines that
// L1 lost. Sharing, tried: values expanded for it, 48 ms; tiles of five and six vectors, 128 or 192
// rows, what one row has first: the same; nothing fetched to L1: 2 % more; masks read when they are
// needed: 1 %. Without it: the line past a row's usual values not fetched: 2 % more at 0.1. Sums of
// the next pair fetched: 2 % more; 384 rows: the same. Pairs of bf16 put side by side, so that four
// come in a load: 2 % less at 0.3, 5 % more at 0.1. Earlier: panels of 16 tokens, each with an
// address of its own, 1.3 to 1.5 times; 1024 rows of 64 tokens miss the TLB, 1.4 times; units
// sorted into 15 classes by which of four rows have weights.
#pragma once

#include "base/machine.h"
#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

inline constexpr int kTileVectors = 8;
inline constexpr int64_t kSkipTokens = 256;
inline constexpr int64_t kSkipRows = 256;       // times kSkipTokens sums, which stay in L2
inline constexpr int64_t kShareVectors = 4;     // fewest of a tile whose loads two rows share,
inline constexpr int64_t kShareFewVectors = 6;  // and where less than a quarter is stored
inline constexpr int kFetchToL1 = 3;

// A pass: tokens [begin, begin + kSkipTokens) as far as they exist.
template <class Unit>
struct SkipPass {
  static constexpr int64_t kWordUnits = 64 / Unit::kColumns;
  int64_t begin, vectors, tiles;
  int64_t at;  // its first element

  TAMIS_INLINE SkipPass(const SpmmArgs& a, int64_t token)
      : begin(token),
        vectors(ceil_div(a.m - token < kSkipTokens ? a.m - token : kSkipTokens, kLanes)),
        tiles(ceil_div(vectors, kTileVectors)),
        at(token * mask_words(a.w.cols) * kWordUnits) {}
  // Vectors before a tile; tiles are as even as can be.
  TAMIS_INLINE int64_t before(int64_t tile) const { return vectors * tile / tiles; }
  TAMIS_INLINE int64_t word_elements() const { return vectors * kLanes * kWordUnits; }
  // Whether two rows share loads: where a row's products outlast a wrong guess or two. Not on
  // Emerald Rapids, which loads twice a cycle.
  bool shares(const MatrixView& w) const {
    const bool many = 4 * w.nnz >= w.rows * w.cols;
    return vectors / tiles >= (many ? kShareVectors : kShareFewVectors) &&
           !has_intel_costs(active_isa());
  }
};

template <class Unit>
int64_t skip_bytes(const SpmmArgs& a) {
  return ceil_div(a.m, kLanes) * kLanes * units_of<Unit>(a.w) * 4;
}

template <class Unit>
void prepare_skip(const SpmmArgs& a, void* prepared, int part, int parts) {
  using Pass = SkipPass<Unit>;
  const int64_t words = mask_words(a.w.cols);
  for (int64_t first = 0; first < a.m; first += kSkipTokens) {
    const Pass pass(a, first);
    auto* out = static_cast<typename Unit::Element*>(prepared) + pass.at;
    for (int64_t word = words * part / parts; word < words * (part + 1) / parts; ++word) {
      auto* of_word = out + word * pass.word_elements();
      for (int64_t tile = 0; tile < pass.tiles; ++tile) {
        const int64_t begin = pass.before(tile), lanes = (pass.before(tile + 1) - begin) * kLanes;
        for (int64_t t = 0; t < lanes; t += kLanes) {
          prepare_tokens<Unit>(a, first + begin * kLanes + t, word * Pass::kWordUnits,
                               (word + 1) * Pass::kWordUnits,
                               of_word + begin * kLanes * Pass::kWordUnits + t, lanes);
        }
      }
    }
  }
}

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

// What is fetched into L2 beside a tile: beside each of the first `left` pairs of rows `lines`
// lines, those of one pair `stride` bytes after those of the one before.
struct SkipAhead {
  const char* at;
  int64_t lines, stride, left;

  TAMIS_INLINE void pair() {
    if (--left < 0) return;
    for (int64_t line = 0; line < lines; ++line) {
      __builtin_prefetch(at + line * 64, 0, kFetchToL2);
    }
    at += stride;
  }
};

// The word of all rows times the tile at x; sums: [rows, T vectors]. Beside that, fetches what is
// ahead and, if this is the first tile, value_bytes of each row's values for the next word.
template <class Unit, int T>
void skip_tile(const SkipRows<Unit>& v, const typename Unit::Element* x, float* sums,
               int64_t value_bytes, bool first, SkipAhead ahead) {
  for (int64_t i = 0; i < 2 * v.pairs(); i += 2) {
    int64_t rows[2] = {v.order[i], v.order[i + 1]};
    __asm__("" : "+r"(rows[0]), "+r"(rows[1]));
    float* of_row[2] = {sums + rows[0] * T * kLanes, sums + rows[1] * T * kLanes};
    v.fetch_near(v.at[v.order[i + 2]], v.at[v.order[i + 3]], value_bytes);
    if (first) v.fetch(rows, {v.end(rows[0]), v.end(rows[1])}, value_bytes);
    ahead.pair();
    simd::F32 sum[2][T];
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        sum[p][t] = v.word == 0 ? simd::zero() : simd::load(of_row[p] + t * kLanes);
      }
    }
    v.template add<T>(rows[0], rows[1], x, sum[0], sum[1]);
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) simd::store(sum[p][t], of_row[p] + t * kLanes);
    }
  }
}

// The same where two rows share loads. Masks are read a pair ahead: the end of a loop over one is
// foreseen wrong, but known long before the products that are on their way.
template <class Unit, int T>
void shared_tile(const SkipRows<Unit>& v, const typename Unit::Element* x, float* sums,
                 int64_t value_bytes, bool first, SkipAhead ahead) {
  uint64_t next_a = v.masks[0], next_b = v.masks[1];
  int64_t next_at_a = v.at[0], next_at_b = v.at[1];
  for (int64_t i = 0; i < 2 * v.pairs(); i += 2, sums += 2 * T * kLanes) {
    const uint64_t mask_a = next_a, mask_b = next_b;
    const int64_t at_a = next_at_a, at_b = next_at_b;
    next_a = v.masks[i + 2], next_b = v.masks[i + 3];
    next_at_a = v.at[i + 2], next_at_b = v.at[i + 3];
    v.fetch_near(next_at_a, next_at_b, value_bytes);
    if (first) {
      v.fetch({i, i + 1}, {at_a + simd::popcount(mask_a), at_b + simd::popcount(mask_b)},
              value_bytes);
    }
    ahead.pair();
    simd::F32 sum[2][T];
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        sum[p][t] = v.word == 0 ? simd::zero() : simd::load(sums + (p * T + t) * kLanes);
      }
    }
    v.template add_sharing<T>(at_a, mask_a, at_b, mask_b, x, sum[0], sum[1]);
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) simd::store(sum[p][t], sums + (p * T + t) * kLanes);
    }
  }
}

// Sums [tiles, stride, lanes of the tile] of `rows` rows, from row_begin on, to y.
template <class Unit>
void skip_store(const SpmmArgs& a, const float* sums, int64_t row_begin, int64_t rows,
                int64_t stride, const SkipPass<Unit>& pass) {
  for (int64_t tile = 0; tile < pass.tiles; ++tile) {
    const int64_t before = pass.before(tile), lanes = (pass.before(tile + 1) - before) * kLanes;
    const int64_t token = pass.begin + before * kLanes;
    const int64_t tokens = a.m - token < lanes ? a.m - token : lanes;
    const float* of_tile = sums + before * kLanes * stride;
    for (int64_t t = 0; t < tokens; t += kSquare) {
      for (int64_t r = 0; r < rows; r += kSquare) {
        write_square<typename Unit::X>(a, of_tile + r * lanes + t, lanes, row_begin + r, rows - r,
                                       token + t, tokens - t);
      }
    }
  }
}

// Blocks of rows that take turns over the x of a tile: two where L2 holds the sums of both, and
// what is beyond L2 is slow (Emerald Rapids: 1 % at half density, 2 to 3 % at a fifth and a tenth).
inline constexpr int64_t kMostBlocks = 2;
inline int64_t skip_blocks() {
  return has_intel_costs(active_isa()) ? kMostBlocks : 1;
}

// Rows [row_begin, row_end), at most kMostBlocks * kSkipRows, times the tokens of a pass.
template <class Unit>
void skip_rows(const SpmmArgs& a, int64_t row_begin, int64_t row_end, const SkipPass<Unit>& pass) {
  using Element = typename Unit::Element;
  using Tile = void (*)(const SkipRows<Unit>&, const Element*, float*, int64_t, bool, SkipAhead);
  static constexpr Tile kTile[] = {skip_tile<Unit, 1>, skip_tile<Unit, 2>, skip_tile<Unit, 3>,
                                   skip_tile<Unit, 4>, skip_tile<Unit, 5>, skip_tile<Unit, 6>,
                                   skip_tile<Unit, 7>, skip_tile<Unit, 8>};
  static constexpr Tile kSharedTile[] = {shared_tile<Unit, 4>, shared_tile<Unit, 5>,
                                         shared_tile<Unit, 6>, shared_tile<Unit, 7>,
                                         shared_tile<Unit, 8>};
  static_assert(kTileVectors == 8, "the tables above have one entry per width of a tile");
  const bool shares = pass.shares(a.w);
  // Of each block: [tiles, rows made even, lanes of the tile].
  alignas(64) float sums[kMostBlocks][kSkipRows * kSkipTokens];
  const int64_t words = mask_words(a.w.cols), word_bytes = pass.word_elements() * 4;
  const int64_t y_bytes = size_of(a.x_dtype), blocks = ceil_div(row_end - row_begin, kSkipRows);
  const int64_t value_bytes = words ? a.w.nnz * size_of(a.w.dtype) / (a.w.rows * words) + 1 : 0;
  SkipRows<Unit> rows[kMostBlocks] = {{a.w, row_begin, row_end, shares},
                                      {a.w, row_begin + kSkipRows, row_end, shares}};
  const int64_t pairs = rows[0].pairs() + (blocks > 1 ? rows[1].pairs() : 0);
  if (words == 0) __builtin_memset(sums, 0, sizeof sums);
  const auto* x = static_cast<const Element*>(a.prepared) + pass.at;
  for (int64_t word = 0; word < words; ++word, x += pass.word_elements()) {
    for (int64_t b = 0; b < blocks; ++b) rows[b].begin(word);
    // Beside the first tile x of the next word, beside each tile of the last word its y, a token
    // a pair.
    SkipAhead ahead{.at = reinterpret_cast<const char*>(x) + word_bytes,
                    .lines = ceil_div(word_bytes, 64 * pairs),
                    .stride = 64 * ceil_div(word_bytes, 64 * pairs),
                    .left = pairs};
    for (int64_t tile = 0; tile < pass.tiles; ++tile, ahead.left = 0) {
      const int64_t before = pass.before(tile) * kLanes;
      const int64_t lanes = pass.before(tile + 1) * kLanes - before;
      for (int64_t b = 0; b < blocks; ++b) {
        if (word + 1 == words) {
          const int64_t token = pass.begin + before, left = a.m - token;
          ahead = {
              .at = static_cast<const char*>(a.y) + (token * a.y_stride + rows[b].row) * y_bytes,
              .lines = ceil_div(rows[b].rows * y_bytes, 64),
              .stride = a.y_stride * y_bytes,
              .left = left < lanes ? left : lanes};
        }
        const int64_t wide = lanes / kLanes;
        const Tile product = shares ? kSharedTile[wide - kShareVectors] : kTile[wide - 1];
        product(rows[b], x + before * SkipPass<Unit>::kWordUnits,
                sums[b] + before * 2 * rows[b].pairs(), value_bytes, tile == 0, ahead);
        ahead.at += ahead.stride * rows[b].pairs();
        ahead.left -= rows[b].pairs();
      }
    }
  }
  for (int64_t b = 0; b < blocks; ++b) {
    skip_store<Unit>(a, sums[b], rows[b].row, rows[b].rows, 2 * rows[b].pairs(), pass);
  }
}

template <class Unit>
void spmm_skip(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const int64_t step = skip_blocks() * kSkipRows;
  for (int64_t row = row_begin; row < row_end; row += step) {
    const int64_t end = row + step < row_end ? row + step : row_end;
    for (int64_t token = 0; token < a.m; token += kSkipTokens) {
      skip_rows<Unit>(a, row, end, SkipPass<Unit>(a, token));
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_SKIP_FORM(x, level, Unit)                                            \
  const SpmmXForm spmm_skip_##x##_##level = {.bytes = skip_bytes<Unit>,            \
                                             .prepare = prepare_skip<Unit>,        \
                                             .tokens_each = kTileVectors * kLanes, \
                                             .even = true,                         \
                                             .lanes = kLanes};
#define TAMIS_SKIP_KERNEL(format, w, x, level, Unit)                                               \
  void spmm_##format##_##w##_##x##_##level##_skip(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_skip<Unit>(a, begin, end);                                                                \
  }
#define TAMIS_SKIP_KERNELS(w, x, level, Unit)  \
  TAMIS_SKIP_KERNEL(bitmap, w, x, level, Unit) \
  TAMIS_SKIP_KERNEL(nm, w, x, level, Unit)     \
  TAMIS_SKIP_KERNEL(csr8, w, x, level, Unit)
