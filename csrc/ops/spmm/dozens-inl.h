// y[m,n] = sum_k x[m,k] * w[n,k] for many tokens.  w: bitmap or nm, expanded once into L2,
// rows in lanes; x: dozens; accumulates f32, one chain per output.
//
// x: dozens, i.e. [tiles][k/64][tokens of the tile][64 columns], as it came, zero past k. A unit is
// one column as f32 or two as a pair of bf16, so every element has four bytes: 16 rows' units, a
// vector, meet one unit of a token, broadcast.
//
// Tile: 32 rows by 12 tokens, or as many as make tiles even, whose sums are registers. A unit costs
// two loads of weights and 24 products that broadcast from memory. A token's 16 outputs are one
// store, where panels of tokens (panels-inl.h) take shuffles and masked stores.
//
// Memory: kDozenBytes of two row tiles' weights are expanded and transposed (16 cycles for 64
// columns of a row in bf16, 26 in f32) for a block of tokens and come from L2 for each tile of
// them; x is fetched into L1 a word ahead, later rows' lines evenly beside products.
//
// Needs: mask bits past k clear (format check); x finite where w is zero, else the sum may be NaN.
// Tail: missing rows are zeros and not stored; values are never read past nnz.
//
// Cost, Zen 4, of the time of products alone (one a cycle), 512x512, bf16, 256 tokens: 1.05, panels
// 1.14. Tried: 16, 32, 64, 128, 256 KB of weights at a time, 1.18, 1.10, 1.13, 1.10, 1.08 at
// 1024x4096; bf16 rounded by integer operations 1.08 for 1.05; x not fetched 1.09; the next columns
// of these rows fetched in bursts between tiles, not later rows' lines evenly: 1.4 for 1.28 with 64
// tokens of 1024x4096, all kept. Rows of 2048 and 4096 columns, all kept, take 4 ns (f32: 8) a word
// more than those of 576, whether they lie a multiple of 4 KB apart or not (4160 columns) and
// whatever is expanded at a time (4 to 64 words).
#pragma once

#include "base/simd/avx512.h"
#include "base/simd/transpose16.h"
#include "ops/spmm/later.h"
#include "ops/spmm/pages.h"
#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

inline constexpr int kDozen = 12;
inline constexpr int kTileRows = 16;
inline constexpr int kTiles = 2;  // of rows
inline constexpr int kDozenRows = kTiles * kTileRows;
inline constexpr int kDozenBytes = 256 * 1024;      // of weights, expanded at a time
inline constexpr int64_t kDozenTokens = 512;        // of a block, or fewer:
inline constexpr int64_t kBlockBytes = 512 * 1024;  // of its x, which leave L2 room for y
inline constexpr int64_t kLeastTokens = 256;
inline constexpr int kFetchToL1 = 3;

template <class Unit>
inline constexpr int kWordUnits = 64 / Unit::kColumns;
template <class Unit>
inline constexpr int kXBytes = 64 * sizeof(typename Unit::X);  // of a word of a token
template <class Unit>
inline constexpr int kPieceWords = kDozenBytes / (kDozenRows * 4 * kWordUnits<Unit>);

// ---- the x form

struct DozensOf {
  int64_t m, words, tiles;

  TAMIS_INLINE explicit DozensOf(const SpmmArgs& a)
      : m(a.m), words(mask_words(a.w.cols)), tiles(ceil_div(a.m, kDozen)) {}
  TAMIS_INLINE int64_t first(int64_t tile) const { return m * tile / tiles; }
};

template <class Unit>
int64_t dozens_bytes(const SpmmArgs& a) {
  return a.m * mask_words(a.w.cols) * kXBytes<Unit>;
}

// Tiles [part / parts), a token at a time, so that x is read in order.
template <class Unit>
void prepare_dozens(const SpmmArgs& a, void* prepared, int part, int parts) {
  using X = typename Unit::X;
  constexpr int kVectors = kXBytes<Unit> / 64;
  const DozensOf x(a);
  const int64_t whole = a.w.cols / 64;
  const auto rest = static_cast<uint64_t>(a.w.cols % 64 * static_cast<int64_t>(sizeof(X)));
  for (int64_t tile = x.tiles * part / parts; tile < x.tiles * (part + 1) / parts; ++tile) {
    const int64_t first = x.first(tile), tokens = x.first(tile + 1) - first;
    char* to = static_cast<char*>(prepared) + first * x.words * kXBytes<Unit>;
    for (int64_t t = 0; t < tokens; ++t) {
      const X* from = static_cast<const X*>(a.x) + (first + t) * a.x_stride;
      char* out = to + t * kXBytes<Unit>;
      for (int64_t word = 0; word < whole; ++word, from += 64, out += tokens * kXBytes<Unit>) {
        __m512i v[kVectors];
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) {
          v[i] = _mm512_loadu_si512(reinterpret_cast<const char*>(from) + 64 * i);
        }
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) _mm512_store_si512(out + 64 * i, v[i]);
      }
      if (rest == 0) continue;
      for (int i = 0; i < kVectors; ++i) {
        const uint64_t left = rest > 64u * i ? rest - 64u * i : 0;
        const __mmask64 there =
            _bzhi_u64(~uint64_t{0}, static_cast<uint32_t>(left < 64 ? left : 64));
        const __m512i v =
            _mm512_maskz_loadu_epi8(there, reinterpret_cast<const char*>(from) + 64 * i);
        _mm512_store_si512(out + 64 * i, v);
      }
    }
  }
}

// ---- weights

// Words of a row tile, expanded and transposed: units [words][units of a word][kTiles][16 rows].
template <class Unit, bool kExact>
void expand_tile(Expander<Unit, kTileRows>& rows, int64_t word, int64_t words,
                 typename Unit::Element* out) {
  constexpr int kChunk = 16 * Unit::kColumns;
  constexpr uint64_t kChunkBits = kChunk == 64 ? ~uint64_t{0} : (uint64_t{1} << kChunk) - 1;
  const auto* values = static_cast<const typename Unit::W*>(rows.w.values);
  for (int64_t i = 0; i < words; ++i) {
    uint64_t mask[kTileRows] = {};
    for (int r = 0; r < rows.count; ++r) mask[r] = rows.bits(r, word + i);
#pragma GCC unroll 1
    for (int chunk = 0; chunk < 64; chunk += kChunk, out += 16 * kDozenRows) {
      __m512i v[kTileRows];
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        const uint64_t bits = mask[r] >> chunk & kChunkBits;
        v[r] = Unit::template spread<kExact>(bits, values + rows.at[r]);
        rows.at[r] += simd::popcount(bits);
      }
      transpose(v);
#pragma GCC unroll 16
      for (int u = 0; u < 16; ++u) _mm512_store_si512(out + u * kDozenRows, v[u]);
    }
  }
}

// ---- the product

struct DozenRun {
  const char* weights;  // [units][kTiles][16 rows], of four bytes
  int64_t words;
  const char* x;               // [words][tokens][64 columns]
  float (*total)[kDozenRows];  // of these tokens
  bool anew, last;             // totals begin at zero; y is written, not they
  const char* next;            // of later rows: `lines` are fetched with every word
  int64_t lines;
  const void* bias;  // of these rows, or null
  void* y;           // of these rows and the first token
  int64_t y_stride;
  int rows;  // that exist
};

// The sums of T tokens and R row tiles.
template <class Unit, int R, int T>
__attribute__((noinline)) void multiply_dozen(const DozenRun& run) {
  using X = typename Unit::X;
  constexpr int kUnit = kDozenRows * 4;  // bytes
  simd::F32 sum[T][R];
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) sum[t][r] = simd::zero();
  }
  if (!run.anew) {
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) sum[t][r] = _mm512_load_ps(run.total[t] + r * kTileRows);
    }
  }
  if (run.last) {
    const char* y = static_cast<const char*>(run.y);
#pragma GCC unroll 1
    for (int t = 0; t < T; ++t, y += run.y_stride * static_cast<int64_t>(sizeof(X))) {
      __builtin_prefetch(y, 1, kFetchToL2);
      if (sizeof(X) == 4) __builtin_prefetch(y + 64, 1, kFetchToL2);
    }
  }
  const char* w = run.weights;
  const char* x = run.x;
  const char* next = run.next;
  const int64_t lines = run.lines;
  for (int64_t word = run.words; word > 0; --word) {
    for (int64_t i = 0; i < lines; ++i, next += 64) __builtin_prefetch(next, 0, kFetchToL2);
    const char* ahead = x + T * kXBytes<Unit>;
    for (int part = 0; part < kWordUnits<Unit>; part += 16, w += 16 * kUnit, x += 64) {
#pragma GCC unroll 16
      for (int u = 0; u < 16; ++u) {
        if (u < T) __builtin_prefetch(ahead + u * 64, 0, kFetchToL1);
        simd::F32 weights[R];
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) weights[r] = _mm512_load_ps(w + u * kUnit + r * 64);
#pragma GCC unroll 12
        for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
          for (int r = 0; r < R; ++r) {
            Unit::add_broadcast(sum[t][r], weights[r], x + t * kXBytes<Unit> + u * 4);
          }
        }
      }
      ahead += T * 64;
    }
    x += (T - 1) * kXBytes<Unit>;
  }
  if (!run.last) {
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) _mm512_store_ps(run.total[t] + r * kTileRows, sum[t][r]);
    }
    return;
  }
  const auto* bias = static_cast<const X*>(run.bias);
  const bool whole = run.rows == R * kTileRows;
  simd::F32 more[R];
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
    const int there = whole ? kTileRows : run.rows - r * kTileRows;
    more[r] = bias ? simd::load(bias + r * kTileRows, there) : simd::zero();
  }
  X* y = static_cast<X*>(run.y);
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t, y += run.y_stride) {
    if (bias) {
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) sum[t][r] = simd::add(sum[t][r], more[r]);
    }
    if (whole) {
      Unit::store_rows(sum[t], y);
    } else {
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        const int left = run.rows - r * kTileRows;
        simd::store(sum[t][r], y + r * kTileRows, left < kTileRows ? left : kTileRows);
      }
    }
  }
}

using MultiplyDozen = void (*)(const DozenRun&);

template <class Unit, int R>
inline constexpr MultiplyDozen kMultiplyDozen[kDozen] = {
    multiply_dozen<Unit, R, 1>,  multiply_dozen<Unit, R, 2>,  multiply_dozen<Unit, R, 3>,
    multiply_dozen<Unit, R, 4>,  multiply_dozen<Unit, R, 5>,  multiply_dozen<Unit, R, 6>,
    multiply_dozen<Unit, R, 7>,  multiply_dozen<Unit, R, 8>,  multiply_dozen<Unit, R, 9>,
    multiply_dozen<Unit, R, 10>, multiply_dozen<Unit, R, 11>, multiply_dozen<Unit, R, 12>};

struct DozenTile {
  alignas(64) char weights[kDozenBytes];
  alignas(64) float total[kDozenTokens][kDozenRows];
};

// Tiles [begin, end) of tokens by rows [row, row + kDozenRows) or those before row_end.
template <class Unit>
void block_of_dozens(const SpmmArgs& a, DozenTile& tile, int64_t row, int64_t row_end,
                     int64_t begin, int64_t end, Later& later) {
  using Rows = Expander<Unit, kTileRows>;
  using Element = typename Unit::Element;
  using X = typename Unit::X;
  const DozensOf x(a);
  const int64_t first = x.first(begin);
  const int left = static_cast<int>(row_end - row < kDozenRows ? row_end - row : kDozenRows);
  const bool two = left > kTileRows;
  Rows rows[kTiles] = {Rows(a.w, row, row + left),
                       two ? Rows(a.w, row + kTileRows, row + left) : Rows(a.w)};
  for (Rows& of_tile : rows) {
    for (int r = of_tile.count; r < kTileRows; ++r) of_tile.at[r] = rows[0].at[0];
  }
  for (int64_t word = 0, here; word < x.words; word += here) {
    here = x.words - word < kPieceWords<Unit> ? x.words - word : kPieceWords<Unit>;
    const bool last = word + here == x.words;
    for (int r = 0; r < (two ? 2 : 1); ++r) {
      auto* out = reinterpret_cast<Element*>(tile.weights) + r * kTileRows;
      const bool exact = a.w.nnz - rows[r].at[rows[r].count - 1] < here * 64 + Unit::kReadsPast;
      (exact ? expand_tile<Unit, true> : expand_tile<Unit, false>)(rows[r], word, here, out);
    }
    const MultiplyDozen* multiply = two ? kMultiplyDozen<Unit, 2> : kMultiplyDozen<Unit, 1>;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t token = x.first(t), tokens = x.first(t + 1) - token;
      multiply[tokens - 1]({.weights = tile.weights,
                            .words = here,
                            .x = static_cast<const char*>(a.prepared) +
                                 (token * x.words + tokens * word) * kXBytes<Unit>,
                            .total = tile.total + (token - first),
                            .anew = word == 0,
                            .last = last,
                            .next = later.take(here),
                            .lines = later.lines,
                            .bias = a.bias ? static_cast<const X*>(a.bias) + row : nullptr,
                            .y = static_cast<X*>(a.y) + token * a.y_stride + row,
                            .y_stride = a.y_stride,
                            .rows = left});
    }
  }
}

template <class Unit>
void spmm_dozens(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const DozensOf x(a);
  const Expander<Unit, 1> starts(a.w);
  const auto* values = static_cast<const char*>(a.w.values);
  const auto value_at = [&](int64_t row) {
    const int64_t at = row < a.w.rows ? starts.row_values(row) : a.w.nnz;
    return values + at * static_cast<int64_t>(sizeof(typename Unit::W));
  };
  const auto mask_at = [&](int64_t row) {
    return reinterpret_cast<const char*>(a.w.mask + row * x.words);
  };
  const int64_t most = kBlockBytes / (x.words * kXBytes<Unit>);
  const int64_t wanted = most < kLeastTokens ? kLeastTokens : most;
  // A block's tiles may have a tile more than their share.
  const int64_t limit = kDozenTokens - 2 * kDozen,
                blocks = ceil_div(a.m, wanted < limit ? wanted : limit);
  PageWalks walks(a.w, row_begin, row_end);
  const int64_t near = row_begin + kDozenRows < row_end ? row_begin + kDozenRows : row_end;
  fetch_to_l2(value_at(row_begin), value_at(near) - value_at(row_begin));
  fetch_to_l2(mask_at(row_begin), mask_at(near) - mask_at(row_begin));
  DozenTile tile;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = x.tiles * block / blocks, end = x.tiles * (block + 1) / blocks;
    for (int64_t row = row_begin; row < row_end; row += kDozenRows) {
      walks.before(row + 2 * kDozenRows);
      const int64_t next = row + kDozenRows < row_end ? row + kDozenRows : row_end;
      const int64_t after = next + kDozenRows < row_end ? next + kDozenRows : row_end;
      Later later(value_at(next), value_at(after), mask_at(next), mask_at(after),
                  (end - begin) * x.words);
      block_of_dozens<Unit>(a, tile, row, row_end, begin, end, later);
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_DOZENS_FORM(x, level, Unit)                                       \
  const SpmmXForm spmm_dozens_##x##_##level = {.bytes = dozens_bytes<Unit>,     \
                                               .prepare = prepare_dozens<Unit>, \
                                               .own = true,                     \
                                               .tokens_each = 192};
#define TAMIS_DOZENS_KERNELS(w, x, level, Unit)  \
  TAMIS_DOZENS_KERNEL(bitmap, w, x, level, Unit) \
  TAMIS_DOZENS_KERNEL(nm, w, x, level, Unit)
#define TAMIS_DOZENS_KERNEL(format, w, x, level, Unit)                                \
  void spmm_##format##_##w##_##x##_##level##_dozens(const SpmmArgs& a, int64_t begin, \
                                                    int64_t end) {                    \
    spmm_dozens<Unit>(a, begin, end);                                                 \
  }
