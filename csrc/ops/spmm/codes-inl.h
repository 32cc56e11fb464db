// y[m,n] = sum_k x[m,k] * w[n,k], both of integer codes.  w: bitmap or nm, i8; x: codes (codes.h);
// accumulates i32 within a chunk of columns, exactly, then f32: one chain per row and token.
//
// Error: that of x, at most half a step per element: |y - y_exact| <= sum_k step/2 * |w[n,k]|,
// step = largest |x| of its kStepColumns / 127 or less; plus c * eps * sum |w||x| of the f32 sums.
//
// Tile: Step::rows(M) rows of w times M tokens; a mask word's weights are expanded once for all M
// tokens, x is loaded once for all rows. More than Step::kMaxTokens tokens take turns over a few
// rows, whose weights stay in L1.
//
// Needs: mask bits past k clear (format check); codes of x past k zero.
//
// Tail: values are never read past nnz: whole vectors while one remains, then masked loads.
//
// Memory: as in bitmap-inl.h, each tile fetches the next one, values and masks, in storage order.
#pragma once

#include "ops/spmm/codes.h"
#include "ops/spmm/pages.h"

namespace tamis {
namespace {

inline constexpr int kCodesToL2 = 2;
inline constexpr int64_t kCodesAheadBytes = 16 * 1024;

TAMIS_INLINE int64_t code_rows_ahead(const MatrixView& w, int64_t tile) {
  const int64_t bytes = w.nnz / w.rows + mask_words(w.cols) * 8;
  return ceil_div(kCodesAheadBytes, tile * (bytes > 0 ? bytes : 1)) * tile;
}

TAMIS_INLINE void fetch_codes(const void* begin, const void* end) {
  for (auto* p = static_cast<const char*>(begin); p < end; p += 64) {
    __builtin_prefetch(p, 0, kCodesToL2);
  }
}

// The first n lanes, a token's outputs of n rows, plus their bias, to y in its own dtype.
template <class X>
TAMIS_INLINE void store_rows(const SpmmArgs& a, simd::F32 v, int64_t row, int64_t token, int n) {
  const auto* bias = static_cast<const X*>(a.bias);
  if (bias) v = simd::add(v, simd::load(bias + row, n));
  simd::store(v, static_cast<X*>(a.y) + token * a.y_stride + row, n);
}
TAMIS_INLINE void store_rows(const SpmmArgs& a, simd::F32 v, int64_t row, int64_t token, int n) {
  switch (a.x_dtype) {
    case DType::f32:
      return store_rows<float>(a, v, row, token, n);
    case DType::f16:
      return store_rows<F16>(a, v, row, token, n);
    default:
      return store_rows<BF16>(a, v, row, token, n);
  }
}

inline constexpr int kCodesTileRows = 8;

// kCodesTileRows rows of w, or fewer, times M tokens, at one chunk of columns.
template <class Step, int M>
struct CodesTile {
  const int8_t* values[kCodesTileRows];  // of each row, moving on with the chunks
  const int8_t* values_end;
  const uint64_t* mask;  // [rows, words] at the chunk's first word
  int64_t words;
  const typename Step::Code* x;  // [words, tokens, 64] likewise
  int64_t tokens;
  const int32_t* starts;  // [M, 16]
  const float* steps;     // [M]
  const float* scales;    // [rows, groups] at the chunk's group, null where one group is all
  int64_t groups;
  int rows;
  const char* next_values;  // of a later tile, to fetch while this one is computed:
  const char* next_mask;
  int64_t next_row_bytes;  // of values a row and chunk
  alignas(64) simd::F32 total[kCodesTileRows][M];
};

// Rows [r, r + R) of a tile within one chunk.
template <class Step, int M, int R>
struct CodesSum {
  typename Step::Sum sum[R][M];

  TAMIS_INLINE explicit CodesSum(const int32_t* starts) {
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
      const auto start = Step::start(starts + t * 16);
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) sum[i][t] = start;
    }
  }

  // One word: its columns within the chunk, values counted on.
  template <bool kExact>
  TAMIS_INLINE void add(const int8_t* (&at)[R], const uint64_t* mask, int64_t words,
                        const typename Step::Code* x, uint64_t within) {
    uint64_t bits[R];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) bits[i] = mask[i * words] & within;
    Step::template multiply<kExact>(sum, at, bits, x);
  }

  // Onto the totals; scales: [R, groups] or null.
  TAMIS_INLINE void finish(simd::F32 (*total)[M], const float* steps, const float* scales,
                           int64_t groups) const {
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int t = 0; t < M; ++t) {
        simd::F32 v = Step::to_f32(sum[i][t]);
        if (scales) v = simd::mul(v, simd::splat(scales[i * groups]));
        total[i][t] = simd::fma(v, simd::splat(steps[t]), total[i][t]);
      }
    }
  }
};

// Few tokens: a few rows take all whole chunks at once, and totals of few stay in registers. More
// tokens would read x from L2 for every few rows.
template <int M>
inline constexpr bool kAtOnce = M <= 4;
template <int M, int R>
inline constexpr bool kHere = M * R <= 8;

// `count` whole chunks of kStepColumns, from a whole word on. Functions of their own, or GCC keeps
// addresses of one in registers that the other needs.
template <class Step, int M, int R>
__attribute__((noinline)) void codes_steps(CodesTile<Step, M>& tile, int64_t count) {
  constexpr int kWords = kStepColumns / 64;
  constexpr int kMaskLines = R * kWords / 8;
  // Fetched evenly: memory gives a line in about the time that two rows' words take.
  const int64_t lines = ceil_div(tile.next_row_bytes * R, kWords * 64);
  for (int r = 0; r < tile.rows; r += R) {
    const int8_t* at[R];
    simd::F32 here[R][M];  // for kHere; more tokens would only copy them
    auto* total = kHere<M, R> ? here : tile.total + r;
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      at[i] = tile.values[r + i];
#pragma GCC unroll 8
      for (int t = 0; kHere<M, R> && t < M; ++t) here[i][t] = tile.total[r + i][t];
    }
    const uint64_t* mask = tile.mask + r * tile.words;
    const char* next_values = tile.next_values + r * count * tile.next_row_bytes;
    const char* next_mask = tile.next_mask + r * count * kWords * 8;
    const auto* x = tile.x;
    const int32_t* starts = tile.starts;
    const float* steps = tile.steps;
    for (int64_t s = 0; s < count; ++s, next_mask += kMaskLines * 64) {
      CodesSum<Step, M, R> sums(starts);
#pragma GCC unroll 8
      for (int w = 0; w < kWords; ++w, ++mask, x += tile.tokens * 64) {
        for (int64_t i = 0; i < lines; ++i) {
          __builtin_prefetch(next_values + (w * lines + i) * 64, 0, kCodesToL2);
        }
#pragma GCC unroll 8
        for (int i = w * kMaskLines / kWords; i < (w + 1) * kMaskLines / kWords; ++i) {
          __builtin_prefetch(next_mask + i * 64, 0, kCodesToL2);
        }
        sums.template add<false>(at, mask, tile.words, x, ~uint64_t{0});
      }
      sums.finish(total, steps, tile.scales ? tile.scales + r * tile.groups : nullptr, tile.groups);
      next_values += R * tile.next_row_bytes;
      starts += tile.tokens * 16;
      steps += tile.tokens;
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      tile.values[r + i] = at[i];
#pragma GCC unroll 8
      for (int t = 0; kHere<M, R> && t < M; ++t) tile.total[r + i][t] = here[i][t];
    }
  }
}

// Any chunk of any rows, and never past the end of the values.
template <class Step, int M>
__attribute__((noinline)) void codes_part(CodesTile<Step, M>& tile, int64_t begin, int64_t end) {
  for (int r = 0; r < tile.rows; ++r) {
    CodesSum<Step, M, 1> sums(tile.starts);
    const int8_t* at[1] = {tile.values[r]};
    const uint64_t* mask = tile.mask + r * tile.words;
    const auto* x = tile.x;
    for (int64_t word = begin / 64; word * 64 < end; ++word, ++mask, x += tile.tokens * 64) {
      const uint64_t within = bits_within(word, begin, end);
      if (tile.values_end - at[0] < Step::kReadsPast) {
        sums.template add<true>(at, mask, tile.words, x, within);
      } else {
        sums.template add<false>(at, mask, tile.words, x, within);
      }
    }
    tile.values[r] = at[0];
    sums.finish(tile.total + r, tile.steps, tile.scales ? tile.scales + r * tile.groups : nullptr,
                tile.groups);
  }
}

// One pass over rows [row, row_end) for M tokens.
template <class Step, int M>
void codes_pass(const SpmmArgs& a, PageWalks& walks, int64_t row, int64_t row_end, int64_t token) {
  constexpr int R = Step::rows(M);
  static_assert(kCodesTileRows % R == 0);
  const XCodes<typename Step::Code> x(a);
  const auto* values = static_cast<const int8_t*>(a.w.values);
  const int64_t words = mask_words(a.w.cols), steps = step_count(a.w);
  const int64_t groups = a.w.group_size < a.w.cols ? ceil_div(a.w.cols, a.w.group_size) : 1;
  const int64_t ahead = code_rows_ahead(a.w, kCodesTileRows);
  CodesTile<Step, M> tile;
  tile.values_end = values + a.w.nnz;
  tile.words = words;
  tile.tokens = x.tokens;
  tile.groups = groups;
  for (; row < row_end; row += tile.rows) {
    tile.rows = static_cast<int>(row_end - row < kCodesTileRows ? row_end - row : kCodesTileRows);
    for (int r = 0; r < tile.rows; ++r) tile.values[r] = values + row_start(a.w, row + r);
    for (auto& of_row : tile.total) {
      for (auto& total : of_row) total = simd::zero();
    }
    walks.before(row + ahead + kCodesTileRows);
    const int64_t next = row + ahead < a.w.rows ? row + ahead : a.w.rows;
    tile.next_values = reinterpret_cast<const char*>(values + row_start(a.w, next));
    tile.next_mask = reinterpret_cast<const char*>(a.w.mask + next * words);
    const int8_t* last = values + row_start(a.w, row + tile.rows);
    tile.next_row_bytes = steps ? (last - tile.values[0]) / (steps * tile.rows) : 0;
    // Whole loads from the last row's last values on may pass the end.
    const bool whole = tile.rows % R == 0 && tile.values_end - last >= Step::kReadsPast;
    const int64_t at_once = whole && groups == 1 && kAtOnce<M> ? a.w.cols / kStepColumns : 0;
    for (Chunks chunk(a.w); chunk.more(); chunk.next()) {
      if (0 < chunk.begin && chunk.begin < at_once * kStepColumns) continue;
      tile.mask = a.w.mask + row * words + chunk.begin / 64;
      tile.x = x.codes + (chunk.begin / 64 * x.tokens + token) * 64;
      tile.starts = x.starts + (chunk.index * x.tokens + token) * 16;
      tile.steps = x.steps + chunk.step() * x.tokens + token;
      tile.scales = groups > 1 ? a.w.scales + row * groups + chunk.group : nullptr;
      if (whole && chunk.end - chunk.begin == kStepColumns) {
        const int64_t count = chunk.begin < at_once * kStepColumns ? at_once : 1;
        codes_steps<Step, M, R>(tile, count);
        tile.next_values += count * tile.rows * tile.next_row_bytes;
        tile.next_mask += count * tile.rows * kStepColumns / 8;
      } else {
        if (chunk.begin % kStepColumns == 0) {
          fetch_codes(tile.next_values, tile.next_values + tile.rows * tile.next_row_bytes);
          fetch_codes(tile.next_mask, tile.next_mask + tile.rows * kStepColumns / 8);
          tile.next_values += tile.rows * tile.next_row_bytes;
          tile.next_mask += tile.rows * kStepColumns / 8;
        }
        codes_part<Step, M>(tile, chunk.begin, chunk.end);
      }
    }
    const simd::F32 scales =
        groups > 1 ? simd::splat(1.0f) : simd::load(a.w.scales + row, tile.rows);
    for (int t = 0; t < M; ++t) {
      simd::F32 of_token[kCodesTileRows];
#pragma GCC unroll 8
      for (int r = 0; r < kCodesTileRows; ++r) of_token[r] = tile.total[r][t];
      store_rows(a, simd::mul(simd::sums(of_token), scales), row, token + t, tile.rows);
    }
  }
}

// Rows per turn over all tokens: few enough for their weights to stay in L1 between passes.
inline constexpr int64_t kCodesTurnBytes = 12 * 1024;

template <class Step>
void spmm_codes(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  using Pass = void (*)(const SpmmArgs&, PageWalks&, int64_t, int64_t, int64_t);
  constexpr int kMax = Step::kMaxTokens;
  static_assert(kMax == 4 || kMax == 8, "the table below has one entry per number of tokens");
  static constexpr Pass kPass[] = {codes_pass<Step, 1>, codes_pass<Step, 2>,   codes_pass<Step, 3>,
                                   codes_pass<Step, 4>, codes_pass < Step,     kMax == 4 ? 4 : 5 >,
                                   codes_pass < Step,   kMax == 4 ? 4 : 6 >,   codes_pass < Step,
                                   kMax == 4 ? 4 : 7 >, codes_pass<Step, kMax>};
  PageWalks walks(a.w, row_begin, row_end);
  const auto* values = static_cast<const int8_t*>(a.w.values);
  const int64_t first = row_begin + code_rows_ahead(a.w, 8);
  const int64_t fetched = first < row_end ? first : row_end;
  fetch_codes(values + row_start(a.w, row_begin), values + row_start(a.w, fetched));
  fetch_codes(a.w.mask + row_begin * mask_words(a.w.cols),
              a.w.mask + fetched * mask_words(a.w.cols));
  if (a.m <= kMax) return kPass[a.m - 1](a, walks, row_begin, row_end, 0);

  const int64_t row_bytes = a.w.cols / 2 + 1;
  const int64_t turn = row_bytes > kCodesTurnBytes / 8 ? 8 : kCodesTurnBytes / row_bytes / 8 * 8;
  for (int64_t row = row_begin; row < row_end; row += turn) {
    const int64_t end = row + turn < row_end ? row + turn : row_end;
    for (int64_t token = 0, left = a.m; left > 0;) {
      const int64_t tokens = ceil_div(left, ceil_div(left, kMax));  // even passes: 9 = 5 + 4
      kPass[tokens - 1](a, walks, row, end, token);
      token += tokens;
      left -= tokens;
    }
  }
}

}  // namespace
}  // namespace tamis

// Defines the kernels of one level for every dtype of x, which only the form and the store see.
#define TAMIS_CODES_KERNEL(x, level, Step)                                                       \
  void spmm_bitmap_i8_##x##_##level##_codes(const SpmmArgs& a, int64_t row_begin,                \
                                            int64_t row_end) {                                   \
    spmm_codes<Step>(a, row_begin, row_end);                                                     \
  }                                                                                              \
  void spmm_nm_i8_##x##_##level##_codes(const SpmmArgs& a, int64_t row_begin, int64_t row_end) { \
    spmm_codes<Step>(a, row_begin, row_end);                                                     \
  }
