// y[m,n] = sum_k x[m,k] * w[n,k] by 2 x 2 matrix products.  w: bitmap or nm, bf16 or i8; x: pairs,
// bf16 or 8-bit codes (codes.h); accumulates f32, i8 in i32 within a chunk of columns, exactly.
//
// bfmmla multiplies 2 rows x 4 columns of bf16, smmla 2 x 8 of i8: 8 bytes of a row are a unit, two
// units side by side an operand, and four sums of two rows and two tokens a register.
//
// x: blocks of kStepColumns columns; in each, strips of 8 tokens [units][8 tokens][8 bytes], then
// one each of 4 and 2 for the tokens that remain, zero past m and k. Codes: then their steps.
//
// Tile: 8 rows of w times 8 tokens, 16 sums. One block of these rows is expanded to the stack,
// neighbouring rows interleaved, and used for all tokens; per unit 4 + 4 loads and 16 products.
//
// Needs: mask bits past k clear (format check); x finite where w is zero, else the sum may be NaN.
// Tail: values are never read past nnz: the last ones are copied.
#pragma once

#include "ops/spmm/bitmap_neon.h"
#include "ops/spmm/codes_neon.h"
#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

inline constexpr int kPairRows = 8;
inline constexpr int64_t kPairTokens = 512;  // sums of kPairRows rows on the stack
inline constexpr int64_t kUnitBytes = 8;

TAMIS_INLINE int64_t pair_tokens(int64_t m) {
  return ceil_div(m, 2) * 2;
}
TAMIS_INLINE int64_t pair_width(int64_t left) {
  return left >= 8 ? 8 : left >= 4 ? 4 : 2;
}

struct Bf16Matrix {
  using W = BF16;
  using Sum = float32x4_t;
  static constexpr int64_t kColumns = 4;  // of a unit
  static constexpr bool kCodes = false;

  static TAMIS_INLINE Sum zero() { return vdupq_n_f32(0.0f); }
  static TAMIS_INLINE Sum product(Sum sum, const uint8x16_t& rows, const uint8x16_t& tokens) {
    return vbfmmlaq_f32(sum, vreinterpretq_bf16_u8(rows), vreinterpretq_bf16_u8(tokens));
  }
  static TAMIS_INLINE float32x4_t to_f32(Sum sum) { return sum; }
  // 64 columns of a row to every other unit at `out`.
  static TAMIS_INLINE int64_t expand(uint64_t bits, const W* p, uint8_t* out) {
    const HalfStarts starts(bits);
#pragma GCC unroll 8
    for (int s = 0; s < 8; ++s) {
      const auto mine = static_cast<uint32_t>(bits >> (8 * s) & 0xff);
      const uint8x16_t two = vreinterpretq_u8_u16(simd::spread_halves(mine, starts.at(p, s)));
      vst1_u8(out + 4 * s * kUnitBytes, vget_low_u8(two));
      vst1_u8(out + (4 * s + 2) * kUnitBytes, vget_high_u8(two));
    }
    return starts.count;
  }
};

struct I8Matrix {
  using W = int8_t;
  using Sum = int32x4_t;
  static constexpr int64_t kColumns = 8;
  static constexpr bool kCodes = true;

  static TAMIS_INLINE Sum zero() { return vdupq_n_s32(0); }
  static TAMIS_INLINE Sum product(Sum sum, const uint8x16_t& rows, const uint8x16_t& tokens) {
    return vmmlaq_s32(sum, vreinterpretq_s8_u8(rows), vreinterpretq_s8_u8(tokens));
  }
  static TAMIS_INLINE float32x4_t to_f32(Sum sum) { return vcvtq_f32_s32(sum); }
  static TAMIS_INLINE int64_t expand(uint64_t bits, const W* p, uint8_t* out) {
    const uint64_t ends = byte_counts(bits) * 0x0101010101010101u;
#pragma GCC unroll 8
    for (int s = 0; s < 8; ++s) {
      const uint64_t before = s ? ends >> (8 * s - 8) & 0xff : 0;
      vst1_s8(reinterpret_cast<int8_t*>(out) + 2 * s * kUnitBytes,
              spread_bytes(bits >> (8 * s), p + before));
    }
    return static_cast<int64_t>(ends >> 56);
  }
};

// ---- the x form

template <class Matrix>
TAMIS_INLINE int64_t pair_units(const MatrixView& w) {
  return ceil_div(w.cols, Matrix::kColumns);
}
template <class Matrix>
int64_t pairs_bytes(const SpmmArgs& a) {
  const int64_t steps = Matrix::kCodes ? step_count(a.w) * 4 : 0;
  return pair_tokens(a.m) * (pair_units<Matrix>(a.w) * kUnitBytes + steps);
}
// Where the steps of codes are: [steps, pair_tokens].
template <class Matrix>
TAMIS_INLINE float* pair_steps(const SpmmArgs& a, const void* prepared) {
  auto* at = static_cast<char*>(const_cast<void*>(prepared));
  return reinterpret_cast<float*>(at + pair_tokens(a.m) * pair_units<Matrix>(a.w) * kUnitBytes);
}

// kStepColumns columns of one token as units: n of them exist.
template <class X>
TAMIS_INLINE float token_units(const X* x, int64_t n, int8_t* out) {
  return quantize(x, n, out);
}
TAMIS_INLINE float token_units(const BF16* x, int64_t n, BF16* out) {
  __builtin_memcpy(out, x, static_cast<size_t>(n) * sizeof(BF16));
  for (int64_t i = n; i < kStepColumns; ++i) out[i] = {0};
  return 1.0f;
}

template <class Matrix, class X>
void prepare_pairs(const SpmmArgs& a, void* prepared, int part, int parts) {
  constexpr int64_t kUnits = kStepColumns / Matrix::kColumns;
  const int64_t tokens = pair_tokens(a.m), blocks = step_count(a.w);
  for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; ++b) {
    const int64_t first = b * kStepColumns;
    const int64_t n = a.w.cols - first < kStepColumns ? a.w.cols - first : kStepColumns;
    const int64_t units = ceil_div(n, Matrix::kColumns);
    char* block = static_cast<char*>(prepared) + b * kUnits * tokens * kUnitBytes;
    for (int64_t strip = 0; strip < tokens; strip += pair_width(tokens - strip)) {
      const int64_t width = pair_width(tokens - strip);
      for (int64_t t = 0; t < width; ++t) {
        alignas(64) typename Matrix::W mine[kStepColumns] = {};
        float step = 0.0f;
        if (strip + t < a.m) {
          step =
              token_units(static_cast<const X*>(a.x) + (strip + t) * a.x_stride + first, n, mine);
        }
        if (Matrix::kCodes) pair_steps<Matrix>(a, prepared)[b * tokens + strip + t] = step;
        char* to = block + (strip * units + t) * kUnitBytes;
        for (int64_t u = 0; u < units; ++u, to += width * kUnitBytes) {
          __builtin_memcpy(to, mine + u * Matrix::kColumns, kUnitBytes);
        }
      }
    }
  }
}

// ---- the product

// `units` units of kPairRows rows times 2 T tokens, onto sums that are `stride` apart; scales: of
// every row and of every token, or null.
template <class Matrix, int T>
__attribute__((noinline)) void multiply_pairs(const uint8_t* w, int64_t w_pair, int64_t units,
                                              const uint8_t* x, int64_t x_unit, float* sums,
                                              int64_t stride, const float* steps,
                                              const float* scales) {
  typename Matrix::Sum sum[kPairRows / 2][T];
#pragma GCC unroll 4
  for (int r = 0; r < kPairRows / 2; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) sum[r][t] = Matrix::zero();
  }
  for (int64_t u = 0; u < units; ++u, w += 2 * kUnitBytes, x += x_unit) {
    uint8x16_t tokens[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) tokens[t] = vld1q_u8(x + 2 * kUnitBytes * t);
#pragma GCC unroll 4
    for (int r = 0; r < kPairRows / 2; ++r) {
      const uint8x16_t rows = vld1q_u8(w + r * w_pair);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) sum[r][t] = Matrix::product(sum[r][t], rows, tokens[t]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kPairRows / 2; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const float32x4_t v = Matrix::to_f32(sum[r][t]);
      float32x2_t low = vget_low_f32(v), high = vget_high_f32(v);
      if (Matrix::kCodes) {
        const float32x2_t step = vld1_f32(steps + 2 * t);
        low = vmul_f32(vmul_n_f32(low, scales[2 * r]), step);
        high = vmul_f32(vmul_n_f32(high, scales[2 * r + 1]), step);
      }
      float* to = sums + 2 * r * stride + 2 * t;
      vst1_f32(to, vadd_f32(vld1_f32(to), low));
      vst1_f32(to + stride, vadd_f32(vld1_f32(to + stride), high));
    }
  }
}

// Words [word, end) of a row within [begin, end_column), from values[at] on; returns how many.
template <class Matrix>
TAMIS_INLINE int64_t expand_row(const MatrixView& w, int64_t row, int64_t at, int64_t begin,
                                int64_t end, uint8_t* out) {
  using W = typename Matrix::W;
  constexpr int64_t kSpan = 64 / Matrix::kColumns * 2 * kUnitBytes;  // of a word, both rows
  const auto* values = static_cast<const W*>(w.values) + at;
  const int64_t words = mask_words(w.cols);
  int64_t count = 0;
  for (int64_t word = begin / 64; word * 64 < end; ++word, out += kSpan) {
    const uint64_t bits = w.mask[row * words + word] & bits_within(word, begin, end);
    if (w.nnz - at - count >= 64 + 16) {
      count += Matrix::expand(bits, values + count, out);
      continue;
    }
    W copy[64 + 16];
    const int here = simd::popcount(bits);
    __builtin_memcpy(copy, values + count, static_cast<size_t>(here) * sizeof(W));
    count += Matrix::expand(bits, copy, out);
  }
  return count;
}

// Rows from `row` on times tokens [token, token + tokens), from the first of a strip on.
template <class Matrix, class X>
void pair_block(const SpmmArgs& a, int64_t row, int rows, int64_t token, int64_t tokens) {
  constexpr int64_t kUnits = kStepColumns / Matrix::kColumns;
  constexpr int64_t kPair = (kUnits + 64 / Matrix::kColumns) * 2 * kUnitBytes;
  const int64_t all = pair_tokens(a.m), stride = ceil_div(tokens, 4) * 4;
  const int64_t groups = a.w.group_size < a.w.cols ? ceil_div(a.w.cols, a.w.group_size) : 1;
  alignas(64) uint8_t weights[kPairRows / 2][kPair];
  alignas(64) float sums[kPairRows * kPairTokens];
  int64_t at[kPairRows];
  float scales[kPairRows] = {};
  for (int64_t i = 0; i < kPairRows * stride; ++i) sums[i] = 0;
  for (int r = 0; r < rows; ++r) at[r] = row_start(a.w, row + r);
  for (int r = rows; r < kPairRows; ++r) {
    for (int64_t i = 0; i < kPair; i += 2 * kUnitBytes) {
      __builtin_memset(weights[r / 2] + i + r % 2 * kUnitBytes, 0, kUnitBytes);
    }
  }
  for (Chunks chunk(a.w); chunk.more(); chunk.next()) {
    const int64_t b = chunk.step(), first = b * kStepColumns, word = chunk.begin / 64;
    const int64_t columns = a.w.cols - first < kStepColumns ? a.w.cols - first : kStepColumns;
    for (int r = 0; r < rows; ++r) {
      at[r] += expand_row<Matrix>(a.w, row + r, at[r], chunk.begin, chunk.end,
                                  weights[r / 2] + r % 2 * kUnitBytes);
      if (Matrix::kCodes)
        scales[r] = a.w.scales[(row + r) * groups + (groups > 1 ? chunk.group : 0)];
    }
    const int64_t unit = (word * 64 - first) / Matrix::kColumns;
    const int64_t units = ceil_div(chunk.end - word * 64, Matrix::kColumns);
    const int64_t of_block = ceil_div(columns, Matrix::kColumns);
    const auto* x = static_cast<const uint8_t*>(a.prepared) +
                    (b * kUnits * all + token * of_block) * kUnitBytes;
    const float* steps = pair_steps<Matrix>(a, a.prepared) + b * all + token;
    for (int64_t t = 0; t < tokens;) {
      const int64_t width = pair_width(tokens - t), x_unit = width * kUnitBytes;
      const uint8_t* strip = x + t * of_block * kUnitBytes + unit * x_unit;
      if (width == 8) {
        multiply_pairs<Matrix, 4>(weights[0], kPair, units, strip, x_unit, sums + t, stride,
                                  steps + t, scales);
      } else if (width == 4) {
        multiply_pairs<Matrix, 2>(weights[0], kPair, units, strip, x_unit, sums + t, stride,
                                  steps + t, scales);
      } else {
        multiply_pairs<Matrix, 1>(weights[0], kPair, units, strip, x_unit, sums + t, stride,
                                  steps + t, scales);
      }
      t += width;
    }
  }
  const int64_t there = a.m - token < tokens ? a.m - token : tokens;
  write_rows<X, kPairRows>(a, sums, stride, row, rows, token, there);
}

template <class Matrix, class X>
void spmm_pairs(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const int64_t all = pair_tokens(a.m), words = mask_words(a.w.cols);
  for (int64_t row = row_begin; row < row_end; row += kPairRows) {
    const int rows = static_cast<int>(row_end - row < kPairRows ? row_end - row : kPairRows);
    const int64_t next = row + 2 * kPairRows < a.w.rows ? row + 2 * kPairRows : a.w.rows;
    const auto* values = static_cast<const typename Matrix::W*>(a.w.values);
    fetch_bytes(values + row_start(a.w, row + rows), values + row_start(a.w, next));
    fetch_bytes(a.w.mask + (row + rows) * words, a.w.mask + next * words);
    for (int64_t token = 0; token < all; token += kPairTokens) {
      pair_block<Matrix, X>(a, row, rows, token,
                            all - token < kPairTokens ? all - token : kPairTokens);
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_PAIRS_FORM(form, x, X, level, Matrix)                                             \
  const SpmmXForm spmm_##form##_##x##_##level = {pairs_bytes<Matrix>, prepare_pairs<Matrix, X>, \
                                                 Matrix::kCodes};
#define TAMIS_PAIRS_KERNEL(form, w, x, X, level, Matrix)                                   \
  void spmm_bitmap_##w##_##x##_##level##_##form(const SpmmArgs& a, int64_t b, int64_t e) { \
    spmm_pairs<Matrix, X>(a, b, e);                                                        \
  }                                                                                        \
  void spmm_nm_##w##_##x##_##level##_##form(const SpmmArgs& a, int64_t b, int64_t e) {     \
    spmm_pairs<Matrix, X>(a, b, e);                                                        \
  }
