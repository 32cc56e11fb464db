// y[m,n] = sum_k x[m,k] * w[n,k] for many tokens, leaving out the zeros of w.  w: bitmap, nm, csr8;
// accumulates f32, two chains per output.
//
// x: passes of kSkipTokens tokens; in each [words][tiles][units][lanes of a tile], a tile being up
// to kTileVectors vectors of tokens side by side and a unit as in panels-inl.h. Zero past k and m.
// So the tokens of a unit are one piece, found by one address.
//
// Tile: one row of w, the columns of one mask word, one tile of tokens. A weight is broadcast once
// and multiplied by T vectors of x, which the products read from L1: T + 1 loads for T products. A
// loop ends where its mask does.
//
// Memory: kSkipRows rows take turns over the x of one word and tile, at most 32 KB, so x comes from
// beyond L1 once for that many rows; their sums stay in L2. The next word's values, masks and x are
// fetched into L2 beside the first tile. (1024 rows of 64 tokens miss the TLB: 1.4 times the time.)
//
// Needs: mask bits past k clear (format check).   Zero weights: skipped; in pairs both must be
// zero.
//
// Cost, f32, Emerald Rapids at 2.4 GHz, ns per row, word and 64 tokens of 256: 39.5 at half
// density, 27 at 0.3, 15 at 0.1; in L1 alone 30, 20.5 and 10: the rest is sums, x and weights from
// L2. Loads need 2.25 cycles a weight, products 2, the end of a loop 20. Tried, in the same
// minutes: panels of 16 tokens, each with an address of its own (products with two index registers
// are two operations), 51, 37.5 and 22; tiles of 96 tokens 43, 31 and 16, of 64 tokens 48.5, 32 and
// 16; 48 to 96 rows whose sums stay in L1 over four words 43 to 50; columns listed beforehand, in
// L1 1.1 times the time; units sorted into 15 classes by which of four rows have weights, a loop
// for each: 1.0 to 1.4 times that of panels.
#pragma once

#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

inline constexpr int kTileVectors = 8;
inline constexpr int64_t kSkipTokens = 256;
inline constexpr int64_t kSkipRows = 256;  // times kSkipTokens sums, which stay in L2

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
        for (int64_t t = 0; t < lanes; t += 4) {
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

template <class Unit, int T>
TAMIS_INLINE void add_unit(const typename Unit::Element* weight, const typename Unit::Element* x,
                           simd::F32 (&sum)[T]) {
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    sum[t] =
        Unit::product(sum[t], weight, simd::load(reinterpret_cast<const float*>(x + t * kLanes)));
  }
}

// add(to) for each of `count` weights, every other one to sums of its own: T chains alone would
// wait for each other.
template <int T, class Add>
TAMIS_INLINE void add_all(int count, simd::F32 (&sum)[T], const Add& add) {
  simd::F32 other[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) other[t] = simd::zero();
  for (int pairs = count / 2; pairs > 0; --pairs) {
    add(sum);
    add(other);
  }
  if (count % 2 != 0) add(sum);
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) sum[t] = simd::add(sum[t], other[t]);
}

// Rows [row, row + rows) and the word they are at.
template <class Unit>
struct SkipRows {
  using W = typename Unit::W;

  const MatrixView& w;
  int64_t words;  // of a row
  int64_t row, rows, word = 0;
  int64_t at[kSkipRows] = {};  // next value of each

  TAMIS_INLINE const W* values() const { return static_cast<const W*>(w.values); }
  TAMIS_INLINE int64_t cell(int64_t r) const { return (row + r) * words + word; }
  TAMIS_INLINE const uint8_t* columns() const { return w.col_bytes + w.rows * words; }
  // Stored in the word.
  TAMIS_INLINE int count(int64_t r) const {
    return w.format == Format::csr8 ? w.col_bytes[cell(r)] : simd::popcount(w.mask[cell(r)]);
  }
  // What row r needs for the next word: its values, usually `bytes` of them, and their columns.
  TAMIS_INLINE void fetch(int64_t r, int64_t bytes) const {
    const auto* next = reinterpret_cast<const char*>(values() + at[r]) + bytes;
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(next + b, 0, kFetchToL2);
    if (w.format == Format::csr8) {
      __builtin_prefetch(columns() + at[r] + 64, 0, kFetchToL2);
      __builtin_prefetch(w.col_bytes + cell(r) + 64, 0, kFetchToL2);
    } else if (word % 8 == 0) {
      __builtin_prefetch(w.mask + cell(r) + 8, 0, kFetchToL2);
    }
  }
};

// The word of row r times the tile at x.
template <class Unit, int T>
TAMIS_INLINE void add_word(const SkipRows<Unit>& v, int64_t r, const typename Unit::Element* x,
                           simd::F32 (&sum)[T]) {
  using Element = typename Unit::Element;
  constexpr bool kAsStored = sizeof(typename Unit::W) == sizeof(Element);
  constexpr int64_t kUnit = T * kLanes;
  const auto* p = v.values() + v.at[r];
  if constexpr (kAsStored) {
    if (v.w.format == Format::csr8) {
      const uint8_t* column = v.columns() + v.at[r];
      add_all<T>(v.count(r), sum, [&](simd::F32(&to)[T]) __attribute__((always_inline)) {
        add_unit<Unit, T>(p++, x + int64_t{*column++} * kUnit, to);
      });
      return;
    }
  }
  Expander<Unit, 1> masks(v.w);
  masks.row = v.row + r;
  masks.at[0] = v.at[r];
  uint64_t bits = masks.bits(0, v.word);
  if constexpr (kAsStored) {
    add_all<T>(simd::popcount(bits), sum, [&](simd::F32(&to)[T]) __attribute__((always_inline)) {
      add_unit<Unit, T>(p++, x + static_cast<int64_t>(_tzcnt_u64(bits)) * kUnit, to);
      bits &= bits - 1;
    });
  } else {
    alignas(64) Element expanded[64 / Unit::kColumns];
    v.w.nnz - v.at[r] < 64 + Unit::kReadsPast ? Unit::template expand<true>(bits, p, expanded)
                                              : Unit::template expand<false>(bits, p, expanded);
    const Element* weight = expanded;
    __asm__("" : "+r"(weight) : : "memory");  // weights are broadcast from memory, not shuffled
    bits = units_in<Unit>(bits);
    add_all<T>(simd::popcount(bits), sum, [&](simd::F32(&to)[T]) __attribute__((always_inline)) {
      const auto unit = static_cast<int64_t>(_tzcnt_u64(bits));
      add_unit<Unit, T>(weight + unit, x + unit * kUnit, to);
      bits &= bits - 1;
    });
  }
}

// The word of all rows times the tile at x; sums: [rows, T vectors]. Beside that, fetches what the
// next word needs: value_bytes of each row's values, x_lines of x a row; or nothing.
template <class Unit, int T>
void skip_tile(const SkipRows<Unit>& v, const typename Unit::Element* x, float* sums,
               int64_t value_bytes, const char* next_x, int64_t x_lines) {
  for (int64_t r = 0; r < v.rows; ++r, sums += T * kLanes) {
    if (value_bytes) v.fetch(r, value_bytes);
    for (int64_t i = 0; i < x_lines; ++i, next_x += 64) {
      __builtin_prefetch(next_x, 0, kFetchToL2);
    }
    simd::F32 sum[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      sum[t] = v.word == 0 ? simd::zero() : simd::load(sums + t * kLanes);
    }
    add_word<Unit, T>(v, r, x, sum);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) simd::store(sum[t], sums + t * kLanes);
  }
}

// Rows [row_begin, row_end), at most kSkipRows, times the tokens of a pass.
template <class Unit>
void skip_block(const SpmmArgs& a, int64_t row_begin, int64_t row_end, const SkipPass<Unit>& pass) {
  using Element = typename Unit::Element;
  using Tile =
      void (*)(const SkipRows<Unit>&, const Element*, float*, int64_t, const char*, int64_t);
  static constexpr Tile kTile[] = {skip_tile<Unit, 1>, skip_tile<Unit, 2>, skip_tile<Unit, 3>,
                                   skip_tile<Unit, 4>, skip_tile<Unit, 5>, skip_tile<Unit, 6>,
                                   skip_tile<Unit, 7>, skip_tile<Unit, 8>};
  static_assert(kTileVectors == 8, "the table above has one entry per width of a tile");
  alignas(64) float sums[kSkipRows * kSkipTokens];  // [tiles, rows, lanes of the tile]
  const Expander<Unit, 1> starts(a.w);
  SkipRows<Unit> v{
      .w = a.w, .words = mask_words(a.w.cols), .row = row_begin, .rows = row_end - row_begin};
  const int64_t word_bytes = pass.word_elements() * 4;
  const int64_t value_bytes = v.words ? a.w.nnz * size_of(a.w.dtype) / (a.w.rows * v.words) + 1 : 0;
  for (int64_t r = 0; r < v.rows; ++r) v.at[r] = starts.row_values(row_begin + r);
  if (v.words == 0) __builtin_memset(sums, 0, sizeof sums);
  const auto* x = static_cast<const Element*>(a.prepared) + pass.at;
  for (v.word = 0; v.word < v.words; ++v.word, x += pass.word_elements()) {
    const char* next_x = reinterpret_cast<const char*>(x) + word_bytes;
    for (int64_t tile = 0; tile < pass.tiles; ++tile) {
      const int64_t before = pass.before(tile), vectors = pass.before(tile + 1) - before;
      kTile[vectors - 1](v, x + before * kLanes * SkipPass<Unit>::kWordUnits,
                         sums + before * kLanes * v.rows, tile == 0 ? value_bytes : 0, next_x,
                         tile == 0 ? ceil_div(word_bytes, 64 * v.rows) : 0);
    }
    for (int64_t r = 0; r < v.rows; ++r) v.at[r] += v.count(r);
  }
  for (int64_t tile = 0; tile < pass.tiles; ++tile) {
    const int64_t before = pass.before(tile), lanes = (pass.before(tile + 1) - before) * kLanes;
    const int64_t token = pass.begin + before * kLanes;
    const int64_t tokens = a.m - token < lanes ? a.m - token : lanes;
    for (int64_t r = 0; r < v.rows; r += 4) {
      const int rows = static_cast<int>(v.rows - r < 4 ? v.rows - r : 4);
      write_rows<typename Unit::X, 4>(a, sums + before * kLanes * v.rows + r * lanes, lanes,
                                      row_begin + r, rows, token, tokens);
    }
  }
}

template <class Unit>
void spmm_skip(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; row += kSkipRows) {
    const int64_t end = row + kSkipRows < row_end ? row + kSkipRows : row_end;
    for (int64_t token = 0; token < a.m; token += kSkipTokens) {
      skip_block<Unit>(a, row, end, SkipPass<Unit>(a, token));
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_SKIP_FORM(x, level, Unit) \
  const SpmmXForm spmm_skip_##x##_##level = {skip_bytes<Unit>, prepare_skip<Unit>};
#define TAMIS_SKIP_KERNEL(format, w, x, level, Unit)                                               \
  void spmm_##format##_##w##_##x##_##level##_skip(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_skip<Unit>(a, begin, end);                                                                \
  }
#define TAMIS_SKIP_KERNELS(w, x, level, Unit)  \
  TAMIS_SKIP_KERNEL(bitmap, w, x, level, Unit) \
  TAMIS_SKIP_KERNEL(nm, w, x, level, Unit)     \
  TAMIS_SKIP_KERNEL(csr8, w, x, level, Unit)
