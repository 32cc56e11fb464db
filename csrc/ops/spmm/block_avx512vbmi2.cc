// y[m,n] = sum_k x[m,k] * w[n,k] for many tokens.  w: blocks of r x c; x: as in skip-inl.h;
// accumulates f32, one chain per output.
//
// Tile: three rows of a block row, the blocks that begin in one mask word's columns, a tile of up
// to 8 vectors of tokens: a column is 8 loads of x, three broadcasts and 24 products. (Two rows: 34
// ms for 31.6 at 4096x4096, half kept, 256 tokens, where products alone take 22.4.)
//
// Memory: as in skip-inl.h: kSkipRows rows take turns over the x of 64 columns and one tile, their
// sums in L2. (Rows of x as given, for one block row after the other, come from L3 once a block
// row: 4096x4096, half kept, 256 tokens 77 to 95 ms, as pages happened to lie.)
//
// Needs: cols % c == 0, rows % r == 0, block columns ascending and within the matrix.
#include "base/simd/avx512.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/skip-inl.h"

namespace tamis {
namespace {

// Rows [row, row + rows) and, of every block row that they touch, the blocks of one word.
struct BlockGroup {
  const MatrixView& w;
  int64_t row, rows, first;       // of the rows, and the first block row
  int64_t block_rows = 0;         // that they touch
  int64_t begin[kSkipRows] = {};  // blocks [begin, end)
  int64_t end[kSkipRows] = {};

  TAMIS_INLINE BlockGroup(const MatrixView& w_of, int64_t row_of, int64_t row_end)
      : w(w_of), row(row_of), rows(row_end - row_of), first(row_of / w_of.block_rows) {
    block_rows = (row_end - 1) / w.block_rows + 1 - first;
    for (int64_t i = 0; i < block_rows; ++i) end[i] = w.row_offsets[first + i];
  }
  // Moves on to the blocks that begin before column `limit`.
  TAMIS_INLINE void next(int64_t limit) {
    for (int64_t i = 0; i < block_rows; ++i) {
      begin[i] = end[i];
      while (end[i] < w.row_offsets[first + i + 1] &&
             int64_t{w.col_indices[end[i]]} * w.block_cols < limit) {
        ++end[i];
      }
    }
  }
};

// Weights [0, n), at most 16, as f32: as they are, or at `out`.
TAMIS_INLINE const float* widened(const float* w, int, float*) {
  return w;
}
template <class W>
TAMIS_INLINE const float* widened(const W* w, int n, float* out) {
  simd::store(n == kLanes ? simd::load(w) : simd::load(w, n), out);
  return out;
}

// R rows from `row` on, of one block row, times its blocks [begin, end); x: the pass's, from the
// tile's lanes on; sums: [R, T vectors].
template <class Unit, int T, int R>
TAMIS_INLINE void add_blocks(const MatrixView& w, int64_t row, int64_t begin, int64_t end,
                             const float* x, int64_t word_elements, float* sums) {
  using W = typename Unit::W;
  simd::F32 sum[R][T];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sum[r][t] = simd::load(sums + (r * T + t) * kLanes);
  }
  for (int64_t b = begin; b < end; ++b) {
    const W* values =
        static_cast<const W*>(w.values) + (b * w.block_rows + row % w.block_rows) * w.block_cols;
    for (int64_t j = 0, n; j < w.block_cols; j += n) {  // columns of one word, at most a vector
      const int64_t column = int64_t{w.col_indices[b]} * w.block_cols + j;
      n = w.block_cols - j < kLanes ? w.block_cols - j : kLanes;
      n = 64 - column % 64 < n ? 64 - column % 64 : n;
      const float* p = x + column / 64 * word_elements + column % 64 * T * kLanes;
      alignas(64) float wide[R][kLanes];
      const float* weights[R];
#pragma GCC unroll 3
      for (int r = 0; r < R; ++r) {
        weights[r] = widened(values + r * w.block_cols + j, static_cast<int>(n), wide[r]);
      }
      for (int64_t i = 0; i < n; ++i, p += T * kLanes) {
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          simd::F32 tokens = simd::load(p + t * kLanes);
          __asm__("" : "+v"(tokens));  // else GCC loads it for each row
#pragma GCC unroll 3
          for (int r = 0; r < R; ++r) {
            sum[r][t] = simd::fma(simd::splat(weights[r][i]), tokens, sum[r][t]);
          }
        }
      }
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) simd::store(sum[r][t], sums + (r * T + t) * kLanes);
  }
}

// The word of all rows times a tile. Beside that, fetches `lines` lines of x every three rows.
template <class Unit, int T>
void block_tile(const BlockGroup& g, const float* x, int64_t word_elements, float* sums,
                const char* next_x, int64_t lines) {
  const int64_t height = g.w.block_rows;
  for (int64_t i = 0; i < g.block_rows; ++i) {
    int64_t row = (g.first + i) * height, row_end = row + height;
    row = row < g.row ? g.row : row;
    row_end = row_end < g.row + g.rows ? row_end : g.row + g.rows;
    for (int64_t left; (left = row_end - row) > 0; row += 3) {
      for (int64_t line = 0; line < lines; ++line, next_x += 64) {
        __builtin_prefetch(next_x, 0, kFetchToL2);
      }
      const auto add = left > 2   ? add_blocks<Unit, T, 3>
                       : left > 1 ? add_blocks<Unit, T, 2>
                                  : add_blocks<Unit, T, 1>;
      add(g.w, row, g.begin[i], g.end[i], x, word_elements, sums + (row - g.row) * T * kLanes);
    }
  }
}

template <class Unit>
void spmm_block_skip(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  using Tile = void (*)(const BlockGroup&, const float*, int64_t, float*, const char*, int64_t);
  static constexpr Tile kTile[] = {block_tile<Unit, 1>, block_tile<Unit, 2>, block_tile<Unit, 3>,
                                   block_tile<Unit, 4>, block_tile<Unit, 5>, block_tile<Unit, 6>,
                                   block_tile<Unit, 7>, block_tile<Unit, 8>};
  static_assert(kTileVectors == 8, "the table above has one entry per width of a tile");
  alignas(64) float sums[kSkipRows * kSkipTokens];  // [tiles, rows, lanes of the tile]
  const int64_t words = mask_words(a.w.cols);
  for (int64_t row = row_begin; row < row_end; row += kSkipRows) {
    const int64_t end = row + kSkipRows < row_end ? row + kSkipRows : row_end;
    for (int64_t token = 0; token < a.m; token += kSkipTokens) {
      const SkipPass<Unit> pass(a, token);
      BlockGroup group(a.w, row, end);
      __builtin_memset(sums, 0, sizeof sums);
      const float* x = static_cast<const float*>(a.prepared) + pass.at;
      const int64_t lines = ceil_div(pass.word_elements() / 16, ceil_div(end - row, 3));
      for (int64_t word = 0; word < words; ++word) {
        group.next((word + 1) * 64);
        const auto* next_x = reinterpret_cast<const char*>(x + (word + 1) * pass.word_elements());
        for (int64_t tile = 0; tile < pass.tiles; ++tile) {
          const int64_t before = pass.before(tile), vectors = pass.before(tile + 1) - before;
          kTile[vectors - 1](group, x + before * kLanes * 64, pass.word_elements(),
                             sums + before * kLanes * group.rows, next_x, tile == 0 ? lines : 0);
        }
      }
      skip_store<Unit>(a, sums, row, group.rows, group.rows, pass);
    }
  }
}

}  // namespace

void spmm_block_f32_f32_avx512vbmi2_skip(const SpmmArgs& a, int64_t begin, int64_t end) {
  spmm_block_skip<F32Unit<float, float>>(a, begin, end);
}
void spmm_block_bf16_bf16_avx512vbmi2_skip(const SpmmArgs& a, int64_t begin, int64_t end) {
  spmm_block_skip<F32Unit<BF16, BF16>>(a, begin, end);
}

}  // namespace tamis
