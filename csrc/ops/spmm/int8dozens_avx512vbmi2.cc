// bitmap and nm of i8 for many tokens: weights expanded once into L1, rows in lanes, then a dense
// product.
//
// y[m,n] = sum_k x[m,k] * w[n,k].  x: dozens, i.e. [tiles][k/64][tokens of the tile][64 codes], so
// that 16 rows' four columns, a vector, meet four codes of a token, broadcast.  Error: as in
// codes-inl.h; more than eight tokens give what int8quads does to the bit.
//
// Tile: 16 rows by 12 tokens, or as many as make tiles even, whose sums and totals are registers.
// Per four columns one load of weights and 12 vpdpbusd that broadcast from memory, which start once
// a cycle on Zen 4, as in a loop without loads (1.06 cycles with vpbroadcastd apart). A token's 16
// outputs are one store, where panels of tokens (int8quads) take 64 shuffles and 16 masked stores
// for 256.
//
// Memory: kWords words of two row tiles are expanded and transposed (7.5 cycles for 64 columns of a
// row) for up to kTokens tokens; x is fetched into L1 a word ahead, from L2, where the codes of a
// block of tokens lie; later rows' lines evenly beside products.
// Tried (Zen 4, of the time of products alone): one row tile instead of two 1.45 for 1.37 (512x512,
// 3136 tokens), three or four no better; 12 words 1.16 for 1.13 (1024x4096, 256 tokens), 8 1.14; no
// lines of y fetched 1.12 times the time, stores past the caches 0.97 (y is read next, so no); a
// block of 128 tokens 1.01 to 1.03.
//
// Needs: codes of x past k zero.   Tail: missing rows are 128s and not stored; values as in
// codes-inl.h.
#include "base/simd/avx512.h"
#include "base/simd/transpose16.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/codes_avx512vbmi2.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/later.h"
#include "ops/spmm/pages.h"

#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12, its own intrinsics

namespace tamis {
namespace {

constexpr int kDozen = 12;
constexpr int kRows = 16;
constexpr int kGroup = 2;  // row tiles that share a tile of x in L1, and lines of y side by side
constexpr int kGroupRows = kGroup * kRows;
constexpr int kWords = 16;                   // expanded at a time
constexpr int kWordBytes = kRows * 64;       // of a row tile
constexpr int64_t kTokens = 512;             // of a block, or fewer:
constexpr int64_t kBlockBytes = 512 * 1024;  // of its codes, which leave L2 room for y
constexpr int64_t kLeastTokens = 256;
constexpr int kToL1 = 3;
constexpr int64_t kReadsPast = 64;

using Quad [[gnu::may_alias]] = int32_t;

// The prepared x. Tokens come in tiles of at most kDozen, as even as can be.
struct XDozens {
  int8_t* codes;    // [tiles][words, tokens, 64]
  int32_t* starts;  // [tiles][chunks, tokens]: what sums begin with
  float* steps;     // [tiles][steps, tokens]
  int64_t m, words, chunks, count, tiles, bytes;

  TAMIS_INLINE XDozens(const SpmmArgs& a, void* prepared)
      : m(a.m),
        words(mask_words(a.w.cols)),
        chunks(chunk_limit(a.w)),
        count(step_count(a.w)),
        tiles(ceil_div(a.m, kDozen)) {
    codes = static_cast<int8_t*>(prepared);
    starts = reinterpret_cast<int32_t*>(codes + m * words * 64);
    steps = reinterpret_cast<float*>(starts + m * chunks);
    bytes = m * (words * 64 + chunks * 4 + count * 4);
  }
  TAMIS_INLINE int64_t first(int64_t tile) const { return m * tile / tiles; }
};

int64_t dozens_bytes(const SpmmArgs& a) {
  return XDozens(a, nullptr).bytes;
}

// Tiles [part / parts), a token at a time, so that x is read in order.
template <class X>
void prepare(const SpmmArgs& a, void* prepared, int part, int parts) {
  const XDozens to(a, prepared);
  const int64_t begin = to.tiles * part / parts, end = to.tiles * (part + 1) / parts;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = to.first(tile), tokens = to.first(tile + 1) - first;
    int8_t* out = to.codes + first * to.words * 64;
    for (int64_t t = 0; t < tokens; ++t) {
      const X* x = static_cast<const X*>(a.x) + (first + t) * a.x_stride;
      int32_t* starts = to.starts + first * to.chunks + t;
      Chunks chunk(a.w);
      for (int64_t step = 0; step < to.count; ++step) {
        const int64_t at = step * kStepColumns, words = to.words - step * kStepWords;
        const int64_t n = a.w.cols - at < kStepColumns ? a.w.cols - at : kStepColumns;
        // Lines that the next step's codes are stored to, apart from these and from each other.
        for (int w = 0; w < kStepWords; ++w) {
          __builtin_prefetch(out + (((step + 1) * kStepWords + w) * tokens + t) * 64, 1, kToL1);
        }
        __m512i codes[kStepWords];
        to.steps[first * to.count + step * tokens + t] = quantize(x + at, n, codes);
#pragma GCC unroll 4
        for (int w = 0; w < kStepWords; ++w) {
          if (w < words) {
            _mm512_store_si512(out + ((step * kStepWords + w) * tokens + t) * 64, codes[w]);
          }
        }
        for (; chunk.more() && chunk.begin < at + n; chunk.next()) {
          __m512i sum = _mm512_setzero_si512();
          for (int64_t word = chunk.begin / 64; word * 64 < chunk.end; ++word) {
            sum = _mm512_dpbusd_epi32(sum, bytes_of(-128), codes[word - step * kStepWords]);
          }
          starts[chunk.index * tokens] = -_mm512_reduce_add_epi32(sum);
        }
      }
    }
  }
}

// A chunk, whose words are neighbours of the next one's in a tile.
struct Piece {
  int64_t begin, end;   // columns
  int64_t index, step;  // of its starts and steps
  const float* scales;  // [kGroup, kRows], or null where one group is all

  TAMIS_INLINE int64_t word() const { return begin / 64; }
  TAMIS_INLINE int64_t words() const { return ceil_div(end, 64) - begin / 64; }
};

struct DozensTile {
  alignas(64) uint8_t weights[kGroup][kWords * kWordBytes];  // [words, 16 quads, rows, 4], w + 128
  alignas(64) float total[kGroup][kTokens][kRows];
  alignas(64) float scales[kWords][kGroup][kRows];  // of pieces
  Piece pieces[kWords];
  int64_t count;  // of pieces
  const int8_t* values[kGroup][kRows];
  int rows[kGroup];  // that exist
};

// A row tile by a tile of tokens.
struct DozensRun {
  const uint8_t* weights;
  const Piece* pieces;
  int64_t count;
  int64_t tile;     // of the group's row tiles
  const int8_t* x;  // [words, tokens, 64]
  const int32_t* starts;
  const float* steps;
  float (*total)[kRows];
  bool anew;         // totals begin at zero
  const char* next;  // of later rows: `lines` are fetched with every word
  int64_t lines;
};

// total[t] (+)= sum over the pieces of x[t] * weights, of T tokens.
template <int T>
__attribute__((noinline)) void multiply_dozen(const DozensRun& run) {
  const uint8_t* w = run.weights;
  const char* next = run.next;
  const int64_t lines = run.lines;
  simd::F32 total[T];
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) total[t] = simd::zero();
  if (!run.anew) {
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) total[t] = _mm512_load_ps(run.total[t]);
  }
  for (const Piece *piece = run.pieces, *end = piece + run.count; piece < end; ++piece) {
    const int8_t* x = run.x + piece->word() * T * 64;
    const int32_t* starts = run.starts + piece->index * T;
    const float* steps = run.steps + piece->step * T;
    __m512i sum[T];
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) sum[t] = _mm512_set1_epi32(starts[t]);
    for (const uint8_t* const last = w + piece->words() * kWordBytes; w < last; w += kWordBytes) {
      for (int64_t i = 0; i < lines; ++i, next += 64) __builtin_prefetch(next, 0, kCodesToL2);
#pragma GCC unroll 16
      for (int quad = 0; quad < 16; ++quad) {
        if (quad < T) __builtin_prefetch(x + (T + quad) * 64, 0, kToL1);
        const __m512i weights = _mm512_load_si512(w + quad * 64);
#pragma GCC unroll 12
        for (int t = 0; t < T; ++t) {
          __asm__("vpdpbusd %2%{1to16%}, %1, %0"
                  : "+v"(sum[t])
                  : "v"(weights), "m"(*reinterpret_cast<const Quad*>(x + t * 64 + quad * 4)));
        }
      }
      x += T * 64;
    }
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
      simd::F32 v = _mm512_cvtepi32_ps(sum[t]);
      if (piece->scales) v = simd::mul(v, _mm512_load_ps(piece->scales + run.tile * kRows));
      total[t] = simd::fma(v, simd::splat(steps[t]), total[t]);
    }
  }
#pragma GCC unroll 12
  for (int t = 0; t < T; ++t) _mm512_store_ps(run.total[t], total[t]);
}

using Multiply = void (*)(const DozensRun&);
constexpr Multiply kMultiply[kDozen] = {multiply_dozen<1>,  multiply_dozen<2>,  multiply_dozen<3>,
                                        multiply_dozen<4>,  multiply_dozen<5>,  multiply_dozen<6>,
                                        multiply_dozen<7>,  multiply_dozen<8>,  multiply_dozen<9>,
                                        multiply_dozen<10>, multiply_dozen<11>, multiply_dozen<12>};

// Pieces from `chunk` on, as many as fit, and the scales of their groups.
void plan(const MatrixView& w, int64_t row, Chunks& chunk, DozensTile& tile) {
  const int64_t groups = w.group_size < w.cols ? ceil_div(w.cols, w.group_size) : 1;
  tile.count = 0;
  for (int64_t words = 0; chunk.more(); chunk.next()) {
    Piece piece{chunk.begin, chunk.end, chunk.index, chunk.step(), nullptr};
    words += piece.words();
    if (words > kWords) return;
    float* scales = tile.scales[tile.count][0];
    if (groups > 1) piece.scales = scales;
    tile.pieces[tile.count++] = piece;
    if (groups == 1) continue;
    for (int r = 0; r < kGroupRows; ++r) {
      scales[r] = row + r < w.rows ? w.scales[(row + r) * groups + chunk.group] : 0;
    }
  }
}

// The pieces of row tile `i`, which starts at `row`: its rows' words, expanded and transposed.
template <bool kExact>
void expand_pieces(const MatrixView& w, DozensTile& tile, int i, int64_t row) {
  const int64_t words = mask_words(w.cols);
  const int8_t* at[kRows];
  for (int r = 0; r < kRows; ++r) at[r] = tile.values[i][r];
  uint8_t* to = tile.weights[i];
  for (const Piece *piece = tile.pieces, *end = piece + tile.count; piece < end; ++piece) {
    const uint64_t* mask = w.mask + row * words + piece->word();
    for (int64_t word = piece->word(), n = piece->words(); n > 0; ++word, --n, ++mask) {
      const uint64_t within = bits_within(word, piece->begin, piece->end);
      __m512i v[kRows];
      if (tile.rows[i] == kRows) {
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const uint64_t bits = mask[r * words] & within;
          v[r] = expand_codes<kExact>(bits, at[r]);
          at[r] += simd::popcount(bits);
        }
      } else {
        for (int r = 0; r < kRows; ++r) {
          const uint64_t bits = r < tile.rows[i] ? mask[r * words] & within : 0;
          v[r] = bits ? expand_codes<true>(bits, at[r]) : bytes_of(-128);
          at[r] += simd::popcount(bits);
        }
      }
      transpose(v);
#pragma GCC unroll 16
      for (int quad = 0; quad < 16; ++quad) _mm512_store_si512(to + quad * 64, v[quad]);
      to += kWordBytes;
    }
  }
  for (int r = 0; r < kRows; ++r) tile.values[i][r] = at[r];
}

// y of n rows from `row` on, and of the tokens whose totals these are.
template <class X>
void store_dozen(const SpmmArgs& a, const float (*total)[kRows], int64_t row, int n, int64_t token,
                 int64_t tokens, bool scaled) {
  const simd::F32 scale = scaled ? simd::splat(1.0f) : simd::load(a.w.scales + row, n);
  const auto* bias = static_cast<const X*>(a.bias);
  const simd::F32 more = bias ? simd::load(bias + row, n) : simd::zero();
  X* y = static_cast<X*>(a.y) + token * a.y_stride + row;
  for (int64_t t = 0; t < tokens; ++t, y += a.y_stride) {
    simd::F32 v = simd::mul(_mm512_load_ps(total[t]), scale);
    if (bias) v = simd::add(v, more);
    if (n == kRows) {
      simd::store(v, y);
    } else {
      simd::store(v, y, n);
    }
  }
}

// Tiles [begin, end) of tokens by the rows of a group, whose weights have not been expanded.
template <class X>
void block_of_tokens(const SpmmArgs& a, const XDozens& x, DozensTile& tile, int64_t row,
                     int64_t row_end, int64_t begin, int64_t end, Later& later) {
  const auto* values = static_cast<const int8_t*>(a.w.values);
  const bool scaled = a.w.group_size < a.w.cols;
  const int64_t first = x.first(begin);
  int tiles = 0;
  for (; tiles < kGroup && row + tiles * kRows < row_end; ++tiles) {
    const int64_t from = row + tiles * kRows, left = row_end - from;
    tile.rows[tiles] = left < kRows ? static_cast<int>(left) : kRows;
    for (int r = 0; r < kRows; ++r) {
      tile.values[tiles][r] = values + row_start(a.w, from + (r < left ? r : 0));
    }
  }
  for (Chunks chunk(a.w); chunk.more();) {
    const bool anew = chunk.begin == 0;
    plan(a.w, row, chunk, tile);
    const bool last = !chunk.more();
    int64_t words = 0;
    for (int64_t i = 0; i < tile.count; ++i) words += tile.pieces[i].words();
    for (int i = 0; i < tiles; ++i) {
      const int8_t* most = tile.values[i][tile.rows[i] - 1];
      const bool exact = values + a.w.nnz - most < words * 64 + kReadsPast;
      (exact ? expand_pieces<true> : expand_pieces<false>)(a.w, tile, i, row + i * kRows);
    }
    for (int64_t t = begin; t < end; ++t) {
      const int64_t token = x.first(t), tokens = x.first(t + 1) - token;
      for (int i = 0; i < tiles; ++i) {
        if (last) {
          const X* y = static_cast<const X*>(a.y) + token * a.y_stride + row + i * kRows;
          for (int64_t j = 0; j < tokens; ++j) {
            __builtin_prefetch(y + j * a.y_stride, 1, kCodesToL2);
          }
        }
        float (*total)[kRows] = tile.total[i] + (token - first);
        kMultiply[tokens - 1]({.weights = tile.weights[i],
                               .pieces = tile.pieces,
                               .count = tile.count,
                               .tile = i,
                               .x = x.codes + token * x.words * 64,
                               .starts = x.starts + token * x.chunks,
                               .steps = x.steps + token * x.count,
                               .total = total,
                               .anew = anew,
                               .next = later.take(words),
                               .lines = later.lines});
        if (last) {
          store_dozen<X>(a, total, row + i * kRows, tile.rows[i], token, tokens, scaled);
        }
      }
    }
  }
}

template <class X>
void spmm_dozens(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const XDozens x(a, const_cast<void*>(a.prepared));
  const auto* values = static_cast<const char*>(a.w.values);
  const int64_t words = x.words, most = kBlockBytes / (words * 64);
  const int64_t wanted = most < kLeastTokens ? kLeastTokens : most;
  // A block's tiles may have a tile more than their share.
  const int64_t limit = kTokens - 2 * kDozen,
                blocks = ceil_div(a.m, wanted < limit ? wanted : limit);
  PageWalks walks(a.w, row_begin, row_end);
  const int64_t near = row_begin + kGroupRows < row_end ? row_begin + kGroupRows : row_end;
  fetch_codes(values + row_start(a.w, row_begin), values + row_start(a.w, near));
  fetch_codes(a.w.mask + row_begin * words, a.w.mask + near * words);
  DozensTile tile;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = x.tiles * block / blocks, end = x.tiles * (block + 1) / blocks;
    for (int64_t row = row_begin; row < row_end; row += kGroupRows) {
      walks.before(row + 2 * kGroupRows);
      const int64_t next = row + kGroupRows < row_end ? row + kGroupRows : row_end;
      const int64_t after = next + kGroupRows < row_end ? next + kGroupRows : row_end;
      Later later(values + row_start(a.w, next), values + row_start(a.w, after),
                  reinterpret_cast<const char*>(a.w.mask + next * words),
                  reinterpret_cast<const char*>(a.w.mask + after * words),
                  (end - begin) * kGroup * words);
      block_of_tokens<X>(a, x, tile, row, row_end, begin, end, later);
    }
  }
}

}  // namespace

#define TAMIS_DOZENS_KERNEL(x, X)                                                               \
  const SpmmXForm spmm_dozens_##x##_avx512vbmi2 = {                                             \
      .bytes = dozens_bytes, .prepare = prepare<X>, .quantizes = true, .tokens_each = 192};     \
  void spmm_bitmap_i8_##x##_avx512vbmi2_dozens(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_dozens<X>(a, begin, end);                                                              \
  }                                                                                             \
  void spmm_nm_i8_##x##_avx512vbmi2_dozens(const SpmmArgs& a, int64_t begin, int64_t end) {     \
    spmm_dozens<X>(a, begin, end);                                                              \
  }

TAMIS_DOZENS_KERNEL(f32, float)
TAMIS_DOZENS_KERNEL(f16, F16)
TAMIS_DOZENS_KERNEL(bf16, BF16)

#undef TAMIS_DOZENS_KERNEL

}  // namespace tamis
