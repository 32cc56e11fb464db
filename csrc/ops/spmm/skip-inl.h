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
#include "ops/spmm/skip_rows-inl.h"

namespace tamis {
namespace {

inline constexpr int kTileVectors = 8;
inline constexpr int64_t kSkipTokens = 256;     // times kSkipRows sums, which stay in L2
inline constexpr int64_t kShareVectors = 4;     // fewest of a tile whose loads two rows share,
inline constexpr int64_t kShareFewVectors = 6;  // and where less than a quarter is stored

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
