// y[m,n] = sum_k x[m,k] * w[n,k] for many tokens, leaving out the zeros of w.  w: bitmap, nm, csr8,
// csr or block; x: strips; accumulates f32, up to four chains per output.
//
// x: blocks of kBlock columns; in each, strips of 32 tokens [columns][32], then one each of 16, 8
// and 4 for the tokens that remain, zero past m. Tokens lie along the lanes, so a weight costs FMAs
// only where it is not zero and no sum crosses lanes (Fast Sparse ConvNets, arXiv:1911.09723).
//
// Tile: R rows of w that share columns (4 or 2 of a block, else 1) times 16 or 32 tokens. Their
// entries are listed once for all tokens: where in a strip the column is, in bytes, and R weights.
// An entry is loads of x, then R FMAs a load by lane: the weights of four entries (R = 1) or one
// (R = 4) are one register. For R = 1 x is loaded for every FMA, which the load ports bound:
// Neoverse N1 has as many load ports as FMA ports, V2 three to four; with R = 4 only FMAs count.
//
// Memory: kRows rows of w take turns over a strip of one block, 32 KB, so that it stays in L1.
//
// Needs: columns ascending within a row (format check).   Tail: entries % 4 one by one.
#pragma once

#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

inline constexpr int64_t kBlock = 256;  // columns: the last one's strip begins at byte 32,640
inline constexpr int kStripShift = 7;   // bytes of a column in a whole strip: 1 << 7
inline constexpr int64_t kRows = 64;
inline constexpr int64_t kTokens = 256;

// Tokens of all strips, and of the next one when so many, a multiple of 4, are left.
TAMIS_INLINE int64_t strip_tokens(int64_t m) {
  return ceil_div(m, 4) * 4;
}
TAMIS_INLINE int64_t strip_width(int64_t left) {
  return left >= 32 ? 32 : left >= 16 ? 16 : left >= 8 ? 8 : 4;
}

template <int N>
struct Number {
  static constexpr int kNumber = N;
};

// ---- the x form

int64_t strips_bytes(const SpmmArgs& a) {
  return strip_tokens(a.m) * a.w.cols * 4;
}

// Columns [first, last): four tokens, one of them there at least, to neighbouring lanes.
template <class X>
TAMIS_INLINE void prepare_strip(const SpmmArgs& a, int64_t token, int64_t first, int64_t last,
                                float* out, int64_t width) {
  const X* x[4];
  const int64_t there = a.m - token < 4 ? a.m - token : 4;
  for (int i = 0; i < 4; ++i) {
    x[i] = static_cast<const X*>(a.x) + (token + (i < there ? i : 0)) * a.x_stride;
  }
  int64_t c = first;
  for (; c + 4 <= last; c += 4, out += 4 * width) {
    Quad q[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) q[i] = i < there ? load_quad(x[i] + c) : vdupq_n_f32(0.0f);
    transpose(q);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store_quad(q[i], out + i * width);
  }
  for (; c < last; ++c, out += width) {
    for (int i = 0; i < 4; ++i) out[i] = i < there ? simd::to_f32(x[i][c]) : 0.0f;
  }
}

template <class X>
void prepare_strips(const SpmmArgs& a, void* prepared, int part, int parts) {
  const int64_t end = a.w.cols * (part + 1) / parts, tokens = strip_tokens(a.m);
  for (int64_t first = a.w.cols * part / parts; first < end;) {
    const int64_t begin = first / kBlock * kBlock;
    const int64_t columns = a.w.cols - begin < kBlock ? a.w.cols - begin : kBlock;
    const int64_t last = end < begin + columns ? end : begin + columns;
    float* block = static_cast<float*>(prepared) + begin * tokens;
    for (int64_t token = 0; token < tokens;) {
      const int64_t width = strip_width(tokens - token);
      float* strip = block + token * columns + (first - begin) * width;
      for (int64_t t = 0; t < width; t += 4) {
        prepare_strip<X>(a, token + t, first, last, strip + t, width);
      }
      token += width;
    }
    first = last;
  }
}

// ---- entries

// R rows that share columns, and their entries of the current block.
struct Group {
  int64_t row;
  int rows;              // R
  int64_t next;          // values (block: columns of the block row) before the current block
  int count;             // entries
  const float* weights;  // [count][R]
  uint16_t* at;          // [count], bytes from the start of a whole strip
};

TAMIS_INLINE void widen(const float*, int64_t, float*) {}
template <class W>
TAMIS_INLINE void widen(const W* from, int64_t n, float* to) {
  for (; n >= simd::kLanes; n -= simd::kLanes, from += simd::kLanes, to += simd::kLanes) {
    simd::store(simd::load(from), to);
  }
  if (n > 0) simd::store(simd::load(from, static_cast<int>(n)), to, static_cast<int>(n));
}

// Where the lanes at p are in a strip, from column `base` of the block on.
TAMIS_INLINE void put_columns(const uint8_t* p, int64_t base, uint16_t* out) {
  vst1q_u16(out, vaddq_u16(vshll_n_u8(vld1_u8(p), kStripShift),
                           vdupq_n_u16(static_cast<uint16_t>(base << kStripShift))));
}

TAMIS_INLINE uint16_t* list_mask(uint64_t bits, int64_t base, uint16_t* out) {
  if (bits == 0) return out;
#pragma GCC unroll 8
  for (int b = 0; b < 8; ++b) {
    const auto mine = static_cast<uint8_t>(bits >> (8 * b));
    put_columns(simd::kPositions.lane[mine], base + 8 * b, out);
    out += simd::kCounts.ones[mine];
  }
  return out;
}

// The columns of one row in [begin, begin + columns); returns how many.
TAMIS_INLINE int list_columns(const MatrixView& w, int64_t row, int64_t next, int64_t begin,
                              int64_t columns, uint16_t* out) {
  uint16_t* end = out;
  const int64_t words = mask_words(w.cols), first = begin / 64;
  if (w.format == Format::csr) {
    for (int64_t i = next; i < w.row_offsets[row + 1] && w.col_indices[i] < begin + columns; ++i) {
      *end++ = static_cast<uint16_t>((w.col_indices[i] - begin) << kStripShift);
    }
    return static_cast<int>(end - out);
  }
  for (int64_t i = 0; i * 64 < columns; ++i) {
    if (w.format != Format::csr8) {
      end = list_mask(w.mask[row * words + first + i], i * 64, end);
      continue;
    }
    const uint8_t* p = w.col_bytes + w.rows * words + next + (end - out);
    const int count = w.col_bytes[row * words + first + i];
    int c = 0;
    for (; c + 8 <= count; c += 8) put_columns(p + c, i * 64, end + c);
    for (; c < count; ++c) end[c] = static_cast<uint16_t>((i * 64 + p[c]) << kStripShift);
    end += count;
  }
  return static_cast<int>(end - out);
}

template <class W>
void list_row(const MatrixView& w, Group& g, int64_t begin, int64_t columns, float* weights) {
  const auto* values = static_cast<const W*>(w.values) + g.next;
  g.count = list_columns(w, g.row, g.next, begin, columns, g.at);
  g.next += g.count;
  widen(values, g.count, weights);
  g.weights = weights;
  if constexpr (sizeof(W) == sizeof(float)) g.weights = reinterpret_cast<const float*>(values);
}

template <class W>
void list_blocks(const MatrixView& w, Group& g, int64_t begin, int64_t columns, float* weights) {
  const int64_t r = w.block_rows, c = w.block_cols, of = g.row / r, within = g.row % r;
  g.weights = weights;
  g.count = 0;
  int64_t b = w.row_offsets[of] + g.next / c, j = g.next % c;
  for (; b < w.row_offsets[of + 1]; ++b, j = 0) {
    const W* p = static_cast<const W*>(w.values) + (b * r + within) * c;
    const int64_t first = w.col_indices[b] * c - begin;
    for (; j < c && first + j < columns; ++j, ++g.count) {
      g.at[g.count] = static_cast<uint16_t>((first + j) << kStripShift);
      for (int i = 0; i < g.rows; ++i) *weights++ = simd::to_f32(p[i * c + j]);
    }
    if (j < c) break;
  }
  g.next = (b - w.row_offsets[of]) * c + j;
}

// ---- the product

// N vectors. One ld1 for four of them is fewer micro-operations than two ldp in a loop that loads
// bind (Neoverse N1, 32 FMAs of R = 1, by llvm-mca: 19 instead of 22 cycles).
template <int N>
TAMIS_INLINE void load_quads(const float* p, Quad (&q)[N]) {
  if constexpr (N == 4) {
    const float32x4x4_t four = vld1q_f32_x4(p);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) q[i] = four.val[i];
  } else {
#pragma GCC unroll 2
    for (int i = 0; i < N; ++i) q[i] = load_quad(p + 4 * i);
  }
}

// The entries of R rows times 4 T tokens, whose columns are `kStripShift - shift` bits apart.
// A function of its own, shared by all formats and dtypes.
template <int R, int T>
__attribute__((noinline)) void multiply_entries(const Group& g, const float* x, int shift,
                                                float* sums, int64_t stride, bool first) {
  constexpr int C = R * T >= 8 ? 1 : R * T >= 4 ? 2 : 4;  // chains
  Quad sum[C][R][T];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      sum[0][r][t] = first ? vdupq_n_f32(0.0f) : load_quad(sums + r * stride + 4 * t);
#pragma GCC unroll 4
      for (int c = 1; c < C; ++c) sum[c][r][t] = vdupq_n_f32(0.0f);
    }
  }
  constexpr int N = T < 4 ? T : 4;  // vectors of x in flight
  const auto place = [x, shift](uint64_t at) __attribute__((always_inline)) {
    const char* p = reinterpret_cast<const char*>(x) + ((at & 0xffff) >> shift);
    __asm__("" : "+r"(p));  // one register, from which loads step on
    return reinterpret_cast<const float*>(p);
  };
  const float* w = g.weights;
  const uint16_t* places = g.at;
  int left = g.count;
  for (; left >= 4; left -= 4, places += 4, w += 4 * R) {
    uint64_t at;
    __builtin_memcpy(&at, places, sizeof at);
    Quad weights = load_quad(w);  // of four entries, two, or one
    const auto entry = [&](auto number) __attribute__((always_inline)) {
      constexpr int e = decltype(number)::kNumber;
      if (e * R % 4 == 0 && e > 0) weights = load_quad(w + e * R);
      const float* p = place(at >> (16 * e));
#pragma GCC unroll 2
      for (int from = 0; from < T; from += N, p += 4 * N) {
        Quad q[N];
        load_quads(p, q);
        // Else GCC loads for all four entries first, into more registers than there are, and
        // copies a lane of the weights that two pieces need to a register of its own.
        if constexpr (N == T) __asm__ volatile("" ::: "memory");
        if constexpr (N < T) __asm__ volatile("" : "+w"(weights)::"memory");
        const auto row = [&](auto of) __attribute__((always_inline)) {
          constexpr int r = decltype(of)::kNumber, lane = (e * R + r) % 4;
#pragma GCC unroll 4
          for (int t = 0; t < N; ++t) {
            Quad& to = sum[e % C][r][from + t];
            to = vfmaq_laneq_f32(to, q[t], weights, lane);
          }
        };
        row(Number<0>());
        if constexpr (R > 1) row(Number<1>());
        if constexpr (R > 2) row(Number<2>()), row(Number<3>());
      }
    };
    entry(Number<0>());
    entry(Number<1>());
    entry(Number<2>());
    entry(Number<3>());
  }
  for (; left > 0; --left, ++places, w += R) {
    const float* p = place(*places);
#pragma GCC unroll 2
    for (int from = 0; from < T; from += N, p += 4 * N) {
      Quad q[N];
      load_quads(p, q);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int t = 0; t < N; ++t) {
          sum[0][r][from + t] = vfmaq_n_f32(sum[0][r][from + t], q[t], w[r]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int c = 1; c < C; ++c) sum[0][r][t] = vaddq_f32(sum[0][r][t], sum[c][r][t]);
      store_quad(sum[0][r][t], sums + r * stride + 4 * t);
    }
  }
}

// A strip of 32 >> shift tokens.
template <int R>
TAMIS_INLINE void multiply_strip(const Group& g, const float* x, int shift, float* sums,
                                 int64_t stride, bool first) {
  if (shift == 3) return multiply_entries<R, 1>(g, x, 3, sums, stride, first);
  if (shift == 2) return multiply_entries<R, 2>(g, x, 2, sums, stride, first);
  if (shift == 1) return multiply_entries<R, 4>(g, x, 1, sums, stride, first);
  if (R < 4) return multiply_entries<R, 8>(g, x, 0, sums, stride, first);
  multiply_entries<R, 4>(g, x, 0, sums, stride, first);
  multiply_entries<R, 4>(g, x + 16, 0, sums + 16, stride, first);
}

// Rows [row_begin, row_end), at most kRows, in groups.
TAMIS_INLINE int split_groups(const MatrixView& w, int64_t row_begin, int64_t row_end,
                              Group (&group)[kRows]) {
  int groups = 0;
  for (int64_t row = row_begin; row < row_end; ++groups) {
    Group& g = group[groups];
    g = {.row = row, .rows = 1, .next = 0, .count = 0, .weights = nullptr, .at = nullptr};
    if (w.format == Format::nm) g.next = row * (w.cols / w.of * w.keep);
    if (w.format == Format::block) {
      int64_t left = w.block_rows - row % w.block_rows;
      left = left < row_end - row ? left : row_end - row;
      g.rows = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    } else if (w.format != Format::nm) {
      g.next = w.row_offsets[row];
    }
    row += g.rows;
  }
  return groups;
}

template <class W, class X>
void skip_rows(const SpmmArgs& a, int64_t row_begin, int64_t row_end, int64_t token,
               int64_t tokens) {
  const int64_t all = strip_tokens(a.m), stride = strip_tokens(tokens);
  alignas(64) float sums[kRows * kTokens];
  alignas(64) float weights[kRows * kBlock];
  uint16_t at[kRows][kBlock + 8];  // 8 more: whole vectors are stored
  Group group[kRows];
  const int groups = split_groups(a.w, row_begin, row_end, group);

  for (int64_t i = 0; a.w.cols == 0 && i < kRows * stride; ++i) sums[i] = 0;
  for (int64_t begin = 0; begin < a.w.cols; begin += kBlock) {
    const int64_t columns = a.w.cols - begin < kBlock ? a.w.cols - begin : kBlock;
    for (int i = 0; i < groups; ++i) {
      Group& g = group[i];
      g.at = at[i];
      float* mine = weights + (g.row - row_begin) * kBlock;
      if (a.w.format == Format::block) {
        list_blocks<W>(a.w, g, begin, columns, mine);
      } else {
        list_row<W>(a.w, g, begin, columns, mine);
      }
    }
    const float* x = static_cast<const float*>(a.prepared) + begin * all + token * columns;
    for (int64_t t = 0; t < stride;) {
      const int64_t width = strip_width(stride - t);
      const int shift = width == 32 ? 0 : width == 16 ? 1 : width == 8 ? 2 : 3;
      for (int i = 0; i < groups; ++i) {
        const Group& g = group[i];
        float* to = sums + (g.row - row_begin) * stride + t;
        if (g.rows == 1) {
          multiply_strip<1>(g, x + t * columns, shift, to, stride, begin == 0);
        } else if (g.rows == 2) {
          multiply_strip<2>(g, x + t * columns, shift, to, stride, begin == 0);
        } else {
          multiply_strip<4>(g, x + t * columns, shift, to, stride, begin == 0);
        }
      }
      t += width;
    }
  }
  for (int64_t row = row_begin; row < row_end; row += 4) {
    const int rows = static_cast<int>(row_end - row < 4 ? row_end - row : 4);
    write_rows<X, 4>(a, sums + (row - row_begin) * stride, stride, row, rows, token, tokens);
  }
}

template <class W, class X>
void spmm_skip(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; row += kRows) {
    const int64_t end = row + kRows < row_end ? row + kRows : row_end;
    for (int64_t token = 0; token < a.m; token += kTokens) {
      skip_rows<W, X>(a, row, end, token, a.m - token < kTokens ? a.m - token : kTokens);
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_SKIP_FORM(x, X, level) \
  const SpmmXForm spmm_skip_##x##_##level = {strips_bytes, prepare_strips<X>};
#define TAMIS_SKIP_KERNEL(format, w, W, x, X, level)                                               \
  void spmm_##format##_##w##_##x##_##level##_skip(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_skip<W, X>(a, begin, end);                                                                \
  }
#define TAMIS_SKIP_KERNELS(w, W, x, X, level)  \
  TAMIS_SKIP_KERNEL(bitmap, w, W, x, X, level) \
  TAMIS_SKIP_KERNEL(nm, w, W, x, X, level)     \
  TAMIS_SKIP_KERNEL(csr8, w, W, x, X, level)   \
  TAMIS_SKIP_KERNEL(csr, w, W, x, X, level)
