// y[m,n] = sum_k x[m,k] * w[n,k], both of integer codes.  w: bitmap or nm, i8; x: codes (codes.h);
// accumulates i32 within a chunk of columns, exactly, then f32: one chain per row and token.
//
// Error: that of x, at most half a step per element: |y - y_exact| <= sum_k step/2 * |w[n,k]|,
// step = largest |x| of its 256 columns / 127; plus c * eps * sum |w||x| of the f32 sums.
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

namespace tamis {
namespace {

TAMIS_INLINE int64_t code_row_start(const MatrixView& w, int64_t row) {
  return w.format == Format::nm ? row * (w.cols / w.of * w.keep) : w.row_offsets[row];
}

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

// R rows of w times M tokens.
template <class Step, int R, int M>
struct CodesTile {
  const int8_t* values[R];
  const int8_t* values_end;
  const uint64_t* mask;
  int64_t words;
  const typename Step::Code* x;
  int64_t x_stride;
  const char* next_values;  // of a later tile, fetched while this one is computed
  const char* next_mask;
  int64_t word_bytes;  // of values per word of columns, all R rows
  typename Step::Sum sum[R][M];

  template <bool kExact>
  TAMIS_INLINE void expand(int64_t word, uint64_t within) {
    const auto* tokens = x + word * 64;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const uint64_t bits = mask[r * words + word] & within;
      const auto weights = Step::template expand<kExact>(bits, values[r]);
      values[r] += simd::popcount(bits);
#pragma GCC unroll 8
      for (int t = 0; t < M; ++t) {
        sum[r][t] = Step::dot(sum[r][t], weights, tokens + t * x_stride);
      }
    }
  }

  // One word. kLast: these rows may end where the values do, so look.
  template <bool kLast>
  TAMIS_INLINE void run(int64_t word, uint64_t within) {
    for (int64_t b = 0; b < word_bytes; b += 64) {
      __builtin_prefetch(next_values + b, 0, kCodesToL2);
    }
    next_values += word_bytes;
    if (word % 8 == 0) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) __builtin_prefetch(next_mask + 64 * r, 0, kCodesToL2);
      next_mask += 64 * R;
    }
    // Rows follow each other, so the last one is nearest to the end.
    if (kLast && values_end - values[R - 1] < 64 + Step::kReadsPast) {
      expand<true>(word, within);
    } else {
      expand<false>(word, within);
    }
  }
};

template <class Step, int R, int M, bool kLast>
TAMIS_INLINE void codes_tile(const SpmmArgs& a, int64_t row, int64_t token, int64_t ahead) {
  const auto* values = static_cast<const int8_t*>(a.w.values);
  const XCodes<typename Step::Code> x(a.w, a.prepared, a.m, 1);
  const float* steps = x.steps + token * x.steps_stride;
  const int32_t* starts = x.starts + token * x.starts_stride;
  const int64_t groups = a.w.group_size < a.w.cols ? ceil_div(a.w.cols, a.w.group_size) : 1;
  const float* scales = a.w.scales + row * groups;

  CodesTile<Step, R, M> tile;
  tile.values_end = values + a.w.nnz;
  tile.words = mask_words(a.w.cols);
  tile.mask = a.w.mask + row * tile.words;
  tile.x = x.codes + token * x.codes_stride;
  tile.x_stride = x.codes_stride;
  simd::F32 total[R][M];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    tile.values[r] = values + code_row_start(a.w, row + r);
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) total[r][t] = simd::zero();
  }
  const int64_t next = row + ahead < a.w.rows ? row + ahead : a.w.rows;
  tile.next_values = reinterpret_cast<const char*>(values + code_row_start(a.w, next));
  tile.next_mask = reinterpret_cast<const char*>(tile.mask + (next - row) * tile.words);
  const int64_t count = code_row_start(a.w, row + R) - code_row_start(a.w, row);
  tile.word_bytes = count / (tile.words ? tile.words : 1);

  for (Chunks chunk(a.w); chunk.more(); chunk.next()) {
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
      const auto start = Step::start(starts + t * x.starts_stride + chunk.index * 16);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) tile.sum[r][t] = start;
    }
    int64_t word = chunk.begin / 64;
    const int64_t full_end = chunk.end / 64;
    if (chunk.begin % 64 != 0) {
      tile.template run<kLast>(word, bits_within(word, chunk.begin, chunk.end));
      ++word;
    }
    for (; word < full_end; ++word) tile.template run<kLast>(word, ~uint64_t{0});
    if (word * 64 < chunk.end) {
      tile.template run<kLast>(word, bits_within(word, chunk.begin, chunk.end));
    }
#pragma GCC unroll 8
    for (int t = 0; t < M; ++t) {
      const float step = steps[t * x.steps_stride + chunk.step()];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const float factor = step * scales[r * groups + chunk.group];
        total[r][t] = simd::fma(Step::to_f32(tile.sum[r][t]), simd::splat(factor), total[r][t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < M; ++t) {
    simd::F32 of_token[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) of_token[r] = total[r][t];
    store_rows(a, simd::sums(of_token), row, token + t, R);
  }
}

// One pass over the weights for M tokens.
template <class Step, int M>
void codes_pass(const SpmmArgs& a, int64_t row, int64_t row_end, int64_t token) {
  constexpr int R = Step::rows(M);
  const int64_t ahead = code_rows_ahead(a.w, R);
  const int64_t last_full_load = a.w.nnz - Step::kReadsPast;
  for (; row + R <= row_end && code_row_start(a.w, row + R) <= last_full_load; row += R) {
    codes_tile<Step, R, M, false>(a, row, token, ahead);
  }
  for (; row + R <= row_end; row += R) codes_tile<Step, R, M, true>(a, row, token, ahead);
  for (; row < row_end; ++row) codes_tile<Step, 1, M, true>(a, row, token, ahead);
}

// Rows per turn over all tokens: few enough for their weights to stay in L1 between passes.
inline constexpr int64_t kCodesTurnBytes = 12 * 1024;

template <class Step>
void spmm_codes(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  using Pass = void (*)(const SpmmArgs&, int64_t, int64_t, int64_t);
  constexpr int kMax = Step::kMaxTokens;
  static_assert(kMax == 4 || kMax == 8, "the table below has one entry per number of tokens");
  static constexpr Pass kPass[] = {codes_pass<Step, 1>, codes_pass<Step, 2>,   codes_pass<Step, 3>,
                                   codes_pass<Step, 4>, codes_pass < Step,     kMax == 4 ? 4 : 5 >,
                                   codes_pass < Step,   kMax == 4 ? 4 : 6 >,   codes_pass < Step,
                                   kMax == 4 ? 4 : 7 >, codes_pass<Step, kMax>};
  const auto* values = static_cast<const int8_t*>(a.w.values);
  const int64_t first = row_begin + code_rows_ahead(a.w, 8);
  const int64_t fetched = first < row_end ? first : row_end;
  fetch_codes(values + code_row_start(a.w, row_begin), values + code_row_start(a.w, fetched));
  fetch_codes(a.w.mask + row_begin * mask_words(a.w.cols),
              a.w.mask + fetched * mask_words(a.w.cols));
  if (a.m <= kMax) return kPass[a.m - 1](a, row_begin, row_end, 0);

  const int64_t row_bytes = a.w.cols / 2 + 1;
  const int64_t turn = row_bytes > kCodesTurnBytes / 8 ? 8 : kCodesTurnBytes / row_bytes / 8 * 8;
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

// Defines the kernels of one level for every dtype of x, which only the form and the store see.
#define TAMIS_CODES_KERNEL(x, level, Step)                                                       \
  void spmm_bitmap_i8_##x##_##level##_codes(const SpmmArgs& a, int64_t row_begin,                \
                                            int64_t row_end) {                                   \
    spmm_codes<Step>(a, row_begin, row_end);                                                     \
  }                                                                                              \
  void spmm_nm_i8_##x##_##level##_codes(const SpmmArgs& a, int64_t row_begin, int64_t row_end) { \
    spmm_codes<Step>(a, row_begin, row_end);                                                     \
  }
