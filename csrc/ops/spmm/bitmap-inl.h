// y[m,n] = sum_k x[m,k] * w[n,k].  w: bitmap or nm, i.e. a u64 mask word per 64 columns and the
// kept values in column order; accumulates f32 in 4 or more chains (one row of 32-column steps: 2).
//
// Tile: Step::rows(M) rows of w times M tokens; a weight is expanded once for all M tokens, x is
// loaded once for all rows. More than Step::kMaxTokens tokens take turns over a few rows, whose
// weights stay in L1.
//
// Needs: mask bits past k clear (format check); x finite where w is zero, else the sum may be NaN.
//
// Tail: k % 64 columns by masked loads of x. Values are never read past nnz: full vectors are
// loaded while at least one vector remains, then AVX-512 expands from memory, which touches only
// what it takes, and AVX2 copies.
//
// Memory: eight rows are eight streams, which no hardware prefetcher follows, so each tile fetches
// the next one, values and masks, in storage order into L2 (pages earlier: pages.h). Fetching the
// masks too is what counts.
// Tried (Zen 4, 4096x4096, 50 %, cold, m = 1, share of a plain read): this 91 to 100 % (bf16) and
// 92 to 97 % (f32); the same without masks 75 %; one row at a time 76 to 88 % and 55 to 69 % (x of
// 16 KB leaves L1 between rows); two rows half the matrix apart 57 to 97 % and 71 to 77 %; columns
// in panels, so that x stays in L1, 35 to 54 %; zero-masked vpexpand, up to twice the time in
// cache.
#pragma once

#include "base/simd/element.h"
#include "ops/spmm/pages.h"
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

// The step that works everywhere: expand to f32 lanes, multiply exactly.
template <class WType, class XType>
struct ExpandF32 {
  using W = WType;
  using X = XType;
  using Weights = simd::F32;
  using Tokens = simd::F32;
  using Sum = simd::F32;
  static constexpr int kColumns = simd::kLanes;
  static constexpr int kReadsPast = simd::kReadsPast;
  static constexpr int kMaxTokens = simd::kLanes == 16 ? 6 : 4;
  // Accumulators fill half of the registers.
  static constexpr int rows(int tokens) { return simd::kLanes == 16 || tokens == 2 ? 4 : 2; }

  static TAMIS_INLINE Tokens load(const X* p) { return simd::load(p); }
  static TAMIS_INLINE Tokens load(const X* p, int n) { return simd::load(p, n); }
  template <bool kExact>
  static TAMIS_INLINE Weights expand(uint64_t bits, const W* p) {
    return simd::expand<kExact>(static_cast<uint32_t>(bits), p);
  }
  static TAMIS_INLINE Sum dot(Sum sum, Weights w, Tokens x) { return simd::fma(w, x, sum); }
};

inline constexpr int kToL2 = 2;

TAMIS_INLINE void fetch_bytes(const void* begin, const void* end) {
  for (auto* p = static_cast<const char*>(begin); p < end; p += 64) __builtin_prefetch(p, 0, kToL2);
}

// Rows to fetch ahead: at least one tile, and about as many bytes as memory delivers in the time
// that one access takes.
inline constexpr int64_t kAheadBytes = 16 * 1024;

TAMIS_INLINE int64_t rows_ahead(const MatrixView& w, int64_t tile) {
  const int64_t bytes = w.nnz * size_of(w.dtype) / w.rows + mask_words(w.cols) * 8;
  return ceil_div(kAheadBytes, tile * (bytes > 0 ? bytes : 1)) * tile;
}

// R rows of w times M tokens.
template <class Step, int R, int M>
struct Tile {
  using W = typename Step::W;
  using X = typename Step::X;
  static constexpr int kColumns = Step::kColumns;
  static constexpr int kSteps = 64 / kColumns;
  static constexpr int kChains = R * M >= 4 ? 1 : 4 / (R * M) < kSteps ? 4 / (R * M) : kSteps;
  static constexpr uint64_t kStepBits = ~uint64_t{0} >> (64 - kColumns);

  const W* values[R];
  const X* x;
  int64_t x_stride;
  const char* next_values;  // of a later tile, fetched while this one is computed
  const char* next_mask;
  int64_t word_bytes;  // of values per word of columns, all R rows
  typename Step::Sum sum[R][M][kChains];

  // Columns [s * kColumns, +kColumns) of the current word; kPartial: only the first n of them.
  template <bool kExact, bool kPartial = false>
  TAMIS_INLINE void step(int s, const uint64_t (&bits)[R], int n = kColumns) {
    typename Step::Tokens tokens[M];
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
      const X* p = x + t * x_stride + s * kColumns;
      tokens[t] = kPartial ? Step::load(p, n) : Step::load(p);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const uint64_t mine = bits[r] >> (s * kColumns) & kStepBits;
      const auto weights = Step::template expand<kExact>(mine, values[r]);
      values[r] += simd::popcount(mine);
#pragma GCC unroll 8
      for (int t = 0; t < M; ++t) {
        auto& chain = sum[r][t][kPartial ? 0 : s % kChains];
        chain = Step::dot(chain, weights, tokens[t]);
      }
    }
  }

  // A whole word, for steps that know where each one's values begin before the first.
  TAMIS_INLINE void whole(const uint64_t (&bits)[R]) {
    if constexpr (requires { typename Step::Starts; }) {
      typename Step::Starts starts[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) starts[r] = typename Step::Starts(bits[r]);
#pragma GCC unroll 8
      for (int s = 0; s < kSteps; ++s) {
        typename Step::Tokens tokens[M];
#pragma GCC unroll 8
        for (int t = 0; t < M; ++t) tokens[t] = Step::load(x + t * x_stride + s * kColumns);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const auto weights = Step::expand_at(bits[r], s, starts[r], values[r]);
#pragma GCC unroll 8
          for (int t = 0; t < M; ++t) {
            sum[r][t][s % kChains] = Step::dot(sum[r][t][s % kChains], weights, tokens[t]);
          }
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) values[r] += starts[r].count;
    } else {
#pragma GCC unroll 8
      for (int s = 0; s < kSteps; ++s) step<false>(s, bits);
    }
  }

  TAMIS_INLINE void fetch(int64_t word) {
    for (int64_t b = 0; b < word_bytes; b += 64) __builtin_prefetch(next_values + b, 0, kToL2);
    next_values += word_bytes;
    if (word % 8 != 0) return;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) __builtin_prefetch(next_mask + 64 * r, 0, kToL2);
    next_mask += 64 * R;
  }

  // All columns. kLast: these rows may end where the values do, so look.
  template <bool kLast>
  TAMIS_INLINE void run(const uint64_t* mask, int64_t columns, const W* values_end) {
    const int64_t words = mask_words(columns), full = columns / 64;
    uint64_t bits[R];
    for (int64_t word = 0; word < full; ++word, x += 64) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) bits[r] = mask[r * words + word];
      fetch(word);
      // Rows follow each other, so the last one is nearest to the end.
      if (kLast && values_end - values[R - 1] < 64 + Step::kReadsPast) {
        for (int s = 0; s < kSteps; ++s) step<true>(s, bits);
        continue;
      }
      whole(bits);
    }
    columns -= full * 64;
    if (columns == 0) return;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) bits[r] = mask[r * words + full];
    for (int s = 0; s * kColumns < columns; ++s) {
      const int64_t left = columns - s * kColumns;
      step<kLast, true>(s, bits, static_cast<int>(left < kColumns ? left : kColumns));
    }
  }

  // Sums over the columns for token t, in the first R lanes.
  TAMIS_INLINE simd::F32 totals(int t) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int c = 1; c < kChains; ++c) sum[r][t][0] = simd::add(sum[r][t][0], sum[r][t][c]);
    }
    simd::F32 chains[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) chains[r] = sum[r][t][0];
    return simd::sums(chains);
  }
};

template <class Step, int R, int M, bool kLast>
TAMIS_INLINE void tile(const SpmmArgs& a, int64_t row, int64_t token, int64_t ahead) {
  using W = typename Step::W;
  using X = typename Step::X;
  const auto* values = static_cast<const W*>(a.w.values);
  Tile<Step, R, M> tile;
  tile.x = static_cast<const X*>(a.x) + token * a.x_stride;
  tile.x_stride = a.x_stride;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    tile.values[r] = values + row_start(a.w, row + r);
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
#pragma GCC unroll 8
      for (auto& chain : tile.sum[r][t]) chain = simd::zero();
    }
  }
  const int64_t words = mask_words(a.w.cols);
  const uint64_t* mask = a.w.mask + row * words;
  const int64_t next = row + ahead < a.w.rows ? row + ahead : a.w.rows;
  tile.next_values = reinterpret_cast<const char*>(values + row_start(a.w, next));
  tile.next_mask = reinterpret_cast<const char*>(mask + (next - row) * words);
  const int64_t count = row_start(a.w, row + R) - row_start(a.w, row);
  tile.word_bytes = count * static_cast<int64_t>(sizeof(W)) / (words ? words : 1);
  tile.template run<kLast>(mask, a.w.cols, values + a.w.nnz);

  const auto* bias = static_cast<const X*>(a.bias);
  const simd::F32 start = bias ? simd::load(bias + row, R) : simd::zero();
  auto* y = static_cast<X*>(a.y) + token * a.y_stride + row;
#pragma GCC unroll 8
  for (int t = 0; t < M; ++t) {
    simd::store(simd::add(tile.totals(t), start), y + t * a.y_stride, R);
  }
}

// One pass over the weights for M tokens.
template <class Step, int M>
void pass(const SpmmArgs& a, PageWalks& walks, int64_t row, int64_t row_end, int64_t token) {
  constexpr int R = Step::rows(M);
  const int64_t ahead = rows_ahead(a.w, R);
  const int64_t last_full_load = a.w.nnz - Step::kReadsPast;
  for (; row + R <= row_end && row_start(a.w, row + R) <= last_full_load; row += R) {
    walks.before(row + ahead + R);
    tile<Step, R, M, false>(a, row, token, ahead);
  }
  for (; row + R <= row_end; row += R) tile<Step, R, M, true>(a, row, token, ahead);
  for (; row < row_end; ++row) tile<Step, 1, M, true>(a, row, token, ahead);
}

// Rows per turn over all tokens: few enough for their weights to stay in L1 between passes.
inline constexpr int64_t kTurnBytes = 12 * 1024;

template <class Step>
void spmm_masked(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  using Pass = void (*)(const SpmmArgs&, PageWalks&, int64_t, int64_t, int64_t);
  constexpr int kMax = Step::kMaxTokens;
  static_assert(kMax == 4 || kMax == 6, "the table below has one entry per number of tokens");
  constexpr int k5 = kMax == 4 ? 4 : 5;
  static constexpr Pass kPass[] = {pass<Step, 1>, pass<Step, 2>,  pass<Step, 3>,
                                   pass<Step, 4>, pass<Step, k5>, pass<Step, kMax>};
  PageWalks walks(a.w, row_begin, row_end);
  const auto* values = static_cast<const typename Step::W*>(a.w.values);
  const int64_t first = row_begin + rows_ahead(a.w, 8);
  const int64_t fetched = first < row_end ? first : row_end;
  fetch_bytes(values + row_start(a.w, row_begin), values + row_start(a.w, fetched));
  fetch_bytes(a.w.mask + row_begin * mask_words(a.w.cols),
              a.w.mask + fetched * mask_words(a.w.cols));
  if (a.m <= kMax) return kPass[a.m - 1](a, walks, row_begin, row_end, 0);

  const int64_t row_bytes = a.w.cols * static_cast<int64_t>(sizeof(typename Step::W)) / 2 + 1;
  const int64_t turn = row_bytes > kTurnBytes / 8 ? 8 : kTurnBytes / row_bytes / 8 * 8;
  for (int64_t row = row_begin; row < row_end; row += turn) {
    const int64_t end = row + turn < row_end ? row + turn : row_end;
    for (int64_t token = 0, left = a.m; left > 0;) {
      const int64_t tokens = ceil_div(left, ceil_div(left, kMax));  // even passes: 8 = 4 + 4
      kPass[tokens - 1](a, walks, row, end, token);
      token += tokens;
      left -= tokens;
    }
  }
}

}  // namespace
}  // namespace tamis

// Defines one kernel over a step, for both formats that are made of mask words.
#define TAMIS_MASKED_KERNEL(w, x, level, Step)                                                  \
  void spmm_bitmap_##w##_##x##_##level(const SpmmArgs& a, int64_t row_begin, int64_t row_end) { \
    spmm_masked<Step>(a, row_begin, row_end);                                                   \
  }                                                                                             \
  void spmm_nm_##w##_##x##_##level(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {     \
    spmm_masked<Step>(a, row_begin, row_end);                                                   \
  }
