// y[m,n] = sum_k x[m,k] * w[n,k] for a few tokens.  w: bitmap or nm; x: strips; accumulates f32, 16
// lanes per output.
//
// x: f32, or bf16 where pairs are multiplied, [passes][words][tokens of the pass][64], zero past k,
// columns of a word in the order in which Step::expand leaves them. Tokens take even passes of at
// most kStripTokens, so that one pass's x of some words is one piece. (Tokens as given lie a
// multiple of 4 KB apart and fight for the sets of L1; x of 16-bit floats would be widened for
// every tile.)
//
// Tile: R rows times a pass. A mask word of each row is expanded into registers and meets the
// tokens of its word; what a step needs next is expanded beside its products where Step::kAhead
// says so. Columns are taken in blocks whose x stays in L1 (few_tokens), for a group of rows whose
// weights stay in L2 (kGroupBytes); sums wait on the stack meanwhile.
//
// Memory: while a group is multiplied, the next one is fetched in storage order into L2, masks too.
//
// Needs: mask bits past k clear (format check); x finite where w is zero, else the sum may be NaN.
//
// Tail: the last rows expand by loads that touch only what they take; values are never read past
// nnz.
//
// Cost, cycles of ports 0 and 5, for 64 columns of a row: 6 (f32) or 5 (bf16) to expand, 2 a token.
// By vdpbf16ps, Zen 4: 2.6 to expand, 2 a token.
#pragma once

#include "ops/spmm/bitmap-inl.h"

namespace tamis {
namespace {

inline constexpr int kStripTokens = 8;
inline constexpr int64_t kGroupBytes = 256 * 1024;
inline constexpr int kGroupRows = 64;  // FewTokens::strip_rows at most

// What steps that multiply in f32 share: a vector of x or weights is kLanes columns.
struct StripFloats {
  using Element = float;
  using Vector = simd::F32;
  static constexpr int kVectorColumns = simd::kLanes;
  static constexpr bool kAhead = false;

  static TAMIS_INLINE Vector load(const Element* p) { return simd::load(p); }
  static TAMIS_INLINE simd::F32 dot(simd::F32 sum, Vector w, Vector x) {
    return simd::fma(w, x, sum);
  }
};

// Weights of any float as f32, in order.
template <class WType, class XType>
struct StripF32 : StripFloats {
  using W = WType;
  using X = XType;
  static constexpr int kColumns = simd::kLanes;
  static constexpr int kReadsPast = simd::kReadsPast;

  template <bool kExact>
  static TAMIS_INLINE void expand(uint64_t bits, const W* p, simd::F32 (&w)[1]) {
    w[0] = simd::expand<kExact>(static_cast<uint32_t>(bits), p);
  }
  // Columns [0, n) of kColumns.
  static TAMIS_INLINE void put(const X* x, int n, float* out) {
    simd::store(n < kColumns ? simd::load(x, n) : simd::load(x), out, kColumns);
  }
};

TAMIS_INLINE int64_t pass_tokens(int64_t left) {
  return ceil_div(left, ceil_div(left, kStripTokens));
}

template <class Step>
int64_t strips_bytes(const SpmmArgs& a) {
  return mask_words(a.w.cols) * a.m * 64 * static_cast<int64_t>(sizeof(typename Step::Element));
}

template <class Step>
void prepare_strips(const SpmmArgs& a, void* prepared, int part, int parts) {
  const int64_t words = mask_words(a.w.cols);
  auto* pass = static_cast<typename Step::Element*>(prepared);
  for (int64_t token = 0; token < a.m;) {
    const int64_t tokens = pass_tokens(a.m - token);
    for (int64_t t = 0; t < tokens; ++t, ++token) {
      const auto* x = static_cast<const typename Step::X*>(a.x) + token * a.x_stride;
      for (int64_t word = words * part / parts; word < words * (part + 1) / parts; ++word) {
        auto* out = pass + (word * tokens + t) * 64;
        for (int64_t c = 0; c < 64; c += Step::kColumns) {
          const int64_t left = a.w.cols - word * 64 - c;
          const int64_t n = left < 0 ? 0 : left < Step::kColumns ? left : Step::kColumns;
          Step::put(x + word * 64 + (n ? c : 0), static_cast<int>(n), out + c);
        }
      }
    }
    pass += words * tokens * 64;
  }
}

// A group of rows, what of it is done, and what to fetch meanwhile.
struct StripGroup {
  int64_t row, rows;
  int64_t at[kGroupRows];           // next value of each
  const char *values, *mask;        // of the next group
  int64_t value_bytes, mask_bytes;  // of it, for a row and word of this one; 0: fetched
};

// R rows of weights on their way through a block of columns.
template <class Step, int R, bool kLast>
struct StripRows {
  static constexpr int kSteps = 64 / Step::kColumns;
  static constexpr int kVectors = Step::kColumns / Step::kVectorColumns;
  static constexpr uint64_t kStepBits = ~uint64_t{0} >> (64 - Step::kColumns);

  const typename Step::W* values[R];
  const uint64_t* mask;  // [R, words]
  int64_t words;

  // The weights of row i in step s of a word.
  TAMIS_INLINE void expand(int i, int64_t word, int s, typename Step::Vector (&w)[kVectors]) {
    expand(i, mask[i * words + word] >> (s * Step::kColumns), w);
  }
  TAMIS_INLINE void expand(int i, uint64_t bits, typename Step::Vector (&w)[kVectors]) {
    bits &= kStepBits;
    __asm__("" : "+r"(bits));
    Step::template expand<kLast>(bits, values[i], w);
    values[i] += simd::popcount(bits);
  }
};

// Words [word, word_end) of rows [r, r + R) of a group, times M tokens.
template <class Step, int R, int M, bool kLast>
TAMIS_INLINE void strip_tile(const SpmmArgs& a, StripGroup& g, int64_t r, int64_t word,
                             int64_t word_end, const typename Step::Element* x,
                             simd::F32 (&sum)[R][M]) {
  using Rows = StripRows<Step, R, kLast>;
  constexpr int kSteps = Rows::kSteps, kVectors = Rows::kVectors;
  Rows rows;
  rows.words = mask_words(a.w.cols);
  rows.mask = a.w.mask + (g.row + r) * rows.words;
  const auto* values = static_cast<const typename Step::W*>(a.w.values);
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) rows.values[i] = values + g.at[r + i];
  const char *next_values = g.values, *next_mask = g.mask;
  typename Step::Vector w[R][kVectors];
  if constexpr (Step::kAhead) {
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) rows.expand(i, word, 0, w[i]);
  }
  for (; word < word_end; ++word, x += M * 64) {
    for (int64_t b = 0; b < R * g.value_bytes; b += 64) {
      __builtin_prefetch(next_values + b, 0, kToL2);
    }
    next_values += R * g.value_bytes;
    if (word % (8 / R) == 0 && g.mask_bytes) __builtin_prefetch(next_mask, 0, kToL2);
    next_mask += R * g.mask_bytes;
    const bool more = word + 1 < word_end;
#pragma GCC unroll 4
    for (int s = 0; s < kSteps; ++s) {
      typename Step::Vector ahead[R][kVectors];
      if constexpr (!Step::kAhead) {
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) rows.expand(i, word, s, w[i]);
      }
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
        for (int t = 0; t < M; ++t) {
          auto tokens = Step::load(x + t * 64 + s * Step::kColumns + v * Step::kVectorColumns);
          if constexpr (Step::kAhead) {
            __asm__ volatile("" : "+v"(tokens));  // keeps expansions where they stand
          } else {
            __asm__("" : "+v"(tokens));
          }
#pragma GCC unroll 8
          for (int i = 0; i < R; ++i) sum[i][t] = Step::dot(sum[i][t], w[i][v], tokens);
#pragma GCC unroll 8
          for (int i = 0; Step::kAhead && i < R; ++i) {
            if (v * M + t != i * (kVectors * M) / (R + 1)) continue;
            if (s + 1 < kSteps) {
              rows.expand(i, word, s + 1, ahead[i]);
            } else {
              rows.expand(i, more ? rows.mask[i * rows.words + word + 1] : 0, ahead[i]);
            }
          }
        }
      }
#pragma GCC unroll 8
      for (int i = 0; Step::kAhead && i < R; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) w[i][v] = ahead[i][v];
      }
    }
  }
  g.values = next_values;
  g.mask = next_mask;
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) g.at[r + i] = rows.values[i] - values;
}

// The same from and to the sums in between, or the output.
template <class Step, int R, int M>
void strip_rows(const SpmmArgs& a, StripGroup& g, int64_t r, int64_t word, int64_t word_end,
                const typename Step::Element* x, float* kept, int64_t token) {
  using X = typename Step::X;
  float* mine = kept + r * (M * simd::kLanes);
  simd::F32 sum[R][M];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
      sum[i][t] = word > 0 ? simd::load(mine + (i * M + t) * simd::kLanes) : simd::zero();
    }
  }
  const int64_t row = g.row + r;
  if (row_start(a.w, row + R) + Step::kReadsPast > a.w.nnz) {
    strip_tile<Step, R, M, true>(a, g, r, word, word_end, x, sum);
  } else {
    strip_tile<Step, R, M, false>(a, g, r, word, word_end, x, sum);
  }
  if (word_end < mask_words(a.w.cols)) {
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int t = 0; t < M; ++t) simd::store(sum[i][t], mine + (i * M + t) * simd::kLanes);
    }
    return;
  }
  const auto* bias = static_cast<const X*>(a.bias);
  const simd::F32 start = bias ? simd::load(bias + row, R) : simd::zero();
  auto* y = static_cast<X*>(a.y) + token * a.y_stride + row;
#pragma GCC unroll 8
  for (int t = 0; t < M; ++t) {
    simd::F32 chains[R];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) chains[i] = sum[i][t];
    simd::store(simd::add(simd::sums(chains), start), y + t * a.y_stride, R);
  }
}

// A group times a pass of M tokens from `token` on, whose x begins at `x`.
template <class Step, int M>
void strip_pass(const SpmmArgs& a, StripGroup g, int64_t token, const typename Step::Element* x) {
  constexpr int R = M <= 4 ? 4 : 2;
  const int64_t words = mask_words(a.w.cols);
  const int64_t word_bytes = M * 64 * static_cast<int64_t>(sizeof(typename Step::Element));
  const int64_t block = few_tokens().strip_bytes / word_bytes;
  alignas(64) float kept[kGroupRows * M * simd::kLanes];
  int64_t word = 0;
  do {
    const int64_t end = word + block < words ? word + block : words;
    int64_t r = 0;
    for (; r + R <= g.rows; r += R) {
      strip_rows<Step, R, M>(a, g, r, word, end, x, kept, token);
    }
    for (; r < g.rows; ++r) strip_rows<Step, 1, M>(a, g, r, word, end, x, kept, token);
    x += (end - word) * M * 64;
    word = end;
  } while (word < words);
}

template <class Step>
void spmm_strips(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  using Element = typename Step::Element;
  using Pass = void (*)(const SpmmArgs&, StripGroup, int64_t, const Element*);
  static constexpr Pass kPass[] = {strip_pass<Step, 1>, strip_pass<Step, 2>, strip_pass<Step, 3>,
                                   strip_pass<Step, 4>, strip_pass<Step, 5>, strip_pass<Step, 6>,
                                   strip_pass<Step, 7>, strip_pass<Step, 8>};
  static_assert(kStripTokens == 8, "the table above has one entry per number of tokens");
  const auto* values = static_cast<const typename Step::W*>(a.w.values);
  const int64_t words = mask_words(a.w.cols), mask_bytes = words * 8;
  const int64_t row_bytes = a.w.nnz * size_of(a.w.dtype) / a.w.rows + mask_bytes + 1;
  const int64_t fit = kGroupBytes / row_bytes / 8 * 8;
  const int64_t most = few_tokens().strip_rows;
  const int64_t group = fit < 8 ? 8 : fit < most ? fit : most;
  PageWalks walks(a.w, row_begin, row_end);
  const int64_t first_end = row_begin + group < row_end ? row_begin + group : row_end;
  fetch_bytes(values + row_start(a.w, row_begin), values + row_start(a.w, first_end));
  fetch_bytes(a.w.mask + row_begin * words, a.w.mask + first_end * words);
  StripGroup g;
  for (g.row = row_begin; g.row < row_end; g.row += group) {
    g.rows = g.row + group < row_end ? group : row_end - g.row;
    for (int64_t r = 0; r < g.rows; ++r) g.at[r] = row_start(a.w, g.row + r);
    const int64_t next = g.row + g.rows, after = next + group < row_end ? next + group : row_end;
    g.values = reinterpret_cast<const char*>(values + row_start(a.w, next));
    g.mask = reinterpret_cast<const char*>(a.w.mask + next * words);
    g.mask_bytes = words ? ceil_div((after - next) * 8, g.rows) : 0;
    g.value_bytes = words ? (row_start(a.w, after) - row_start(a.w, next)) * size_of(a.w.dtype) /
                                (g.rows * words)
                          : 0;
    walks.before(after);
    const auto* x = static_cast<const Element*>(a.prepared);
    for (int64_t token = 0; token < a.m;) {
      const int64_t tokens = pass_tokens(a.m - token);
      kPass[tokens - 1](a, g, token, x);
      g.value_bytes = g.mask_bytes = 0;
      x += words * tokens * 64;
      token += tokens;
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_STRIPS_FORM(x, level, Step) \
  const SpmmXForm spmm_strips_##x##_##level = {strips_bytes<Step>, prepare_strips<Step>};
#define TAMIS_STRIPS_KERNELS(w, x, level, Step)                                                  \
  void spmm_bitmap_##w##_##x##_##level##_strips(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_strips<Step>(a, begin, end);                                                            \
  }                                                                                              \
  void spmm_nm_##w##_##x##_##level##_strips(const SpmmArgs& a, int64_t begin, int64_t end) {     \
    spmm_strips<Step>(a, begin, end);                                                            \
  }
