// y[m,n] = sum_k x[m,k] * w[n,k].  w: bitmap or nm, i.e. a u64 mask word per 64 columns and the
// kept values in column order; accumulates f32 in 4 or more chains (one row of 32-column steps: 2).
//
// Tile: Step::rows(M) rows of w times M tokens; a weight is expanded once for all M tokens. More
// than Step::kMaxTokens tokens take turns over a few rows, whose weights stay in L1.
//
// Needs: mask bits past k clear (format check); x finite where w is zero, else the sum may be NaN.
//
// Tail: k % 64 columns by masked loads of x. Values are never read past nnz: AVX-512 expands from
// memory, which touches only what it takes; AVX2 loads full vectors, and copies in the last word.
//
// Tried (Zen 4, 4096x4096, 50 %, cold, share of a plain read): zero-masked vpexpand, up to twice
// the time in cache (false dependency); load, then expand a register, equal to the memory form;
// 2 or 4 rows with one prefetch per row, 45 % (bf16) and 54 to 66 % (f32), where the code below
// reaches 73 % and 72 %.
#pragma once

#include "base/simd/element.h"
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

// Where a row's values begin. nm stores no offsets: every row keeps equally many.
TAMIS_INLINE int64_t row_start(const MatrixView& w, int64_t row) {
  return w.format == Format::nm ? row * (w.cols / w.of * w.keep) : w.row_offsets[row];
}

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
  static constexpr int kMaxTokens = simd::kLanes == 16 ? 8 : 4;
  // Accumulators fill half of the registers; x is read once per that many rows.
  static constexpr int rows(int tokens) {
    if (simd::kLanes == 16) return tokens == 1 ? 8 : tokens > 4 ? 2 : 4;
    return tokens > 2 ? 2 : 4;
  }

  static TAMIS_INLINE Tokens load(const X* p) { return simd::load(p); }
  static TAMIS_INLINE Tokens load(const X* p, int n) { return simd::load(p, n); }
  template <bool kExact>
  static TAMIS_INLINE Weights expand(uint64_t bits, const W* p) {
    return simd::expand<kExact>(static_cast<uint32_t>(bits), p);
  }
  static TAMIS_INLINE Sum dot(Sum sum, Weights w, Tokens x) { return simd::fma(w, x, sum); }
};

// Where to prefetch. A single row reads one stream; lines that are used once should not displace x.
// Several rows are several streams, which no hardware prefetcher follows here; fetching a later
// tile in storage order looks like one.
inline constexpr int64_t kAheadBytes = 8192;
inline constexpr int kNotTemporal = 0, kToL2 = 2;

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
  const char* ahead;   // prefetched next: walks through the tile after next, in storage order
  int64_t word_bytes;  // by this much per word of columns
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

  // All columns. kLast: these are the last rows, so look where the values end.
  template <bool kLast>
  TAMIS_INLINE void run(const uint64_t* mask, int64_t columns, const W* values_end) {
    const int64_t words = mask_words(columns);
    uint64_t bits[R];
    for (; columns >= 64; columns -= 64, ++mask, x += 64) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) bits[r] = mask[r * words];
      if (R == 1) {
        __builtin_prefetch(reinterpret_cast<const char*>(values[0]) + kAheadBytes, 0, kNotTemporal);
      } else {
        for (int64_t b = 0; b < word_bytes; b += 64) __builtin_prefetch(ahead + b, 0, kToL2);
        ahead += word_bytes;
      }
      if (kLast && values_end - values[0] < 64 + Step::kReadsPast) {
        for (int s = 0; s < kSteps; ++s) step<true, true>(s, bits);
        continue;
      }
#pragma GCC unroll 8
      for (int s = 0; s < kSteps; ++s) step<false>(s, bits);
    }
    if (columns == 0) return;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) bits[r] = mask[r * words];
    for (int s = 0; s * kColumns < columns; ++s) {
      const int64_t left = columns - s * kColumns;
      step<kLast, true>(s, bits, static_cast<int>(left < kColumns ? left : kColumns));
    }
  }

  TAMIS_INLINE float total(int r, int t) const {
    auto chains = sum[r][t][0];
#pragma GCC unroll 8
    for (int c = 1; c < kChains; ++c) chains = simd::add(chains, sum[r][t][c]);
    return simd::sum(chains);
  }
};

template <class Step, int R, int M, bool kLast>
TAMIS_INLINE void tile(const SpmmArgs& a, int64_t row, int64_t token) {
  using X = typename Step::X;
  const auto* values = static_cast<const typename Step::W*>(a.w.values);
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
  const auto* next = reinterpret_cast<const char*>(values + row_start(a.w, row + R));
  const int64_t tile_bytes = next - reinterpret_cast<const char*>(tile.values[0]);
  tile.ahead = next + tile_bytes;
  tile.word_bytes = tile_bytes / (a.w.cols < 64 ? 1 : a.w.cols / 64);
  tile.template run<kLast>(a.w.mask + row * mask_words(a.w.cols), a.w.cols, values + a.w.nnz);

  const auto* bias = static_cast<const X*>(a.bias);
  auto* y = static_cast<X*>(a.y) + token * a.y_stride + row;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const float start = bias ? simd::to_f32(bias[row + r]) : 0.0f;
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) simd::store(tile.total(r, t) + start, y + t * a.y_stride + r);
  }
}

// One pass over the weights for M tokens.
template <class Step, int M>
void pass(const SpmmArgs& a, int64_t row, int64_t row_end, int64_t token) {
  constexpr int R = Step::rows(M);
  const int64_t last_full_load = a.w.nnz - Step::kReadsPast;
  for (; row + R <= row_end && row_start(a.w, row + R) <= last_full_load; row += R) {
    tile<Step, R, M, false>(a, row, token);
  }
  for (; row < row_end; ++row) {
    for (int t = 0; t < M; ++t) tile<Step, 1, 1, true>(a, row, token + t);
  }
}

// Rows per turn over all tokens: few enough for their weights to stay in L1 between passes.
inline constexpr int64_t kTurnBytes = 12 * 1024;

template <class Step>
void spmm_masked(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  using Pass = void (*)(const SpmmArgs&, int64_t, int64_t, int64_t);
  constexpr int kMax = Step::kMaxTokens;
  static_assert(kMax == 4 || kMax == 8, "the table below has one entry per number of tokens");
  static constexpr Pass kPass[] = {pass<Step, 1>,       pass<Step, 2>,       pass<Step, 3>,
                                   pass<Step, 4>,       pass < Step,         kMax == 4 ? 4 : 5 >,
                                   pass < Step,         kMax == 4 ? 4 : 6 >, pass < Step,
                                   kMax == 4 ? 4 : 7 >, pass<Step, kMax>};
  if (a.m <= kMax) return kPass[a.m - 1](a, row_begin, row_end, 0);

  const int64_t row_bytes = a.w.cols * static_cast<int64_t>(sizeof(typename Step::W)) / 2 + 1;
  const int64_t turn = row_bytes > kTurnBytes / 8 ? 8 : kTurnBytes / row_bytes / 8 * 8;
  for (int64_t row = row_begin; row < row_end; row += turn) {
    const int64_t end = row + turn < row_end ? row + turn : row_end;
    for (int64_t token = 0, left = a.m; left > 0;) {
      const int64_t tokens = ceil_div(left, ceil_div(left, kMax));  // even passes: 9 = 5 + 4
      kPass[tokens - 1](a, row, end, token);
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
