// bitmap and nm of i8 for several tokens and many: weights expanded once into L1, then a dense
// product.
//
// y[m,n] = sum_k x[m,k] * w[n,k].  x: quads, i.e. [k/4][16 tokens][4 codes], so that one vector
// meets four broadcast weights of a row and no sum crosses lanes.  Error: as in codes-inl.h.
//
// Tile: 24 sums in registers: 12 rows by two panels of 16 tokens, 24 by one, 8 by three at an odd
// end. Per four columns two loads of x, 12 vpbroadcastd and 24 vpdpbusd, of which ports 0 and 5
// start two a cycle (Zen 4: one). 24 rows by one panel need 25 loads, which are two a cycle too.
// Up to eight tokens: one panel of eight by eight columns, whose sums are one vector a row where
// codes-inl.h converts, scales and adds eight to memory every kStepColumns.
//
// Memory: the columns of one chunk of kRows rows are expanded (6 KB) for up to kPanels panels,
// whose totals, f32, take 24 KB; x is fetched into L1 a run of panels ahead, y while the last chunk
// is multiplied, the next rows in storage order as in codes-inl.h, evenly: eight tokens take 1.02
// ms, 1.22 with lines fetched beside products alone (4096x4096, cold). Tried (Emerald Rapids,
// 4096x4096, 256 tokens, ms): 24 by one panel everywhere 17.0; 12 by two with 96, 48, 24 rows
// expanded at a time 14.5, 14.1, 14.1 and at 4096x14336 55, 50.8, 49.7, because L1 gets a quarter
// of a line a cycle and totals of more rows leave it. Products alone would take 11.0 and 38.5.
//
// 9 to 16 tokens on Zen 4: the loop of quads_beside_avx512vbmi2.h; more take int8dozens there.
//
// Needs: codes of x past k and of missing tokens zero.
//
// Tail: rows past the last are computed on what was there and not stored; values as in codes-inl.h.
#include <cstring>

#include "base/simd/avx512.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/codes_avx512vbmi2.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/pages.h"
#include "ops/spmm/quads_beside_avx512vbmi2.h"

#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12, its own intrinsics

namespace tamis {
namespace {

constexpr int kRows = 24;  // expanded at a time
constexpr int kSums = 24;  // in registers
constexpr int kLanes = 16;
constexpr int kFewTokens = 8;  // up to so many: panels of eight tokens
constexpr int kPanels = 16;    // panels per expansion
constexpr int kFetchToL1 = 3;

XQuads quads_of(const SpmmArgs& a, void* prepared) {
  return {a, prepared, a.m <= kFewTokens ? kFewTokens : kQuadTokens};
}

int64_t quads_bytes(const SpmmArgs& a) {
  return quads_of(a, nullptr).bytes;
}

template <class X>
void prepare(const SpmmArgs& a, void* prepared, int part, int parts) {
  prepare_panels<X>(a, quads_of(a, prepared), part, parts);
}

struct QuadsTile {
  alignas(64) uint8_t weights[kRows][kStepColumns];  // w + 128
  // By runs of panels, in each [rows of its tile, to kRows][its panels].
  alignas(64) float total[kPanels * kRows + 16][kLanes];
  const int8_t* values[kRows];
};

// A run of panels, one chunk of columns.
struct QuadsRun {
  int64_t columns;
  const int8_t* x;       // [panels, kStepColumns * T], the next run's behind it
  const int32_t* start;  // [panels, 16]
  const float* step;     // [panels, 16]
  const float* scales;   // [rows, groups] at the chunk's group, or null
  int64_t groups;
  int64_t rows;      // that exist
  const char* next;  // of later rows' values, fetched a line per vector of x, or null
  const char* y;     // fetched beside that, a token per four columns, or null
  int64_t y_bytes;   // from token to token
};

// Expands a chunk of rows [row, row + rows). Beside that, fetches a line of later rows' values and
// half a line of their masks a row.
void expand_rows(const MatrixView& w, QuadsTile& tile, int64_t row, int rows, const Chunks& chunk,
                 const char* next, const uint64_t* next_mask) {
  const int8_t* values_end = static_cast<const int8_t*>(w.values) + w.nnz;
  const int64_t words = mask_words(w.cols), first = chunk.begin / 64;
  const int64_t margin = (ceil_div(chunk.end, 64) - first + 1) * 64;
  const bool whole = chunk.end - chunk.begin == kStepColumns && chunk.begin % 64 == 0;
  for (int r = 0; r < rows; ++r) {
    const uint64_t* mask = w.mask + (row + r) * words + first;
    const int8_t* p = tile.values[r];
    uint8_t* to = tile.weights[r];
    __builtin_prefetch(next + r * 64, 0, kCodesToL2);
    __builtin_prefetch(next_mask + r * kStepWords, 0, kCodesToL2);
    if (values_end - p < margin) {
      p = expand_row<true>(mask, p, chunk, to);
    } else if (!whole) {
      p = expand_row<false>(mask, p, chunk, to);
    } else {
#pragma GCC unroll 8
      for (int word = 0; word < kStepWords; ++word) {
        _mm512_store_si512(to + 64 * word, expand_codes<false>(mask[word], p));
        p += simd::popcount(mask[word]);
      }
    }
    tile.values[r] = p;
  }
}

// total[r][p] += step * (start + sum over columns of weights[r] * x), for rows [row, row + R) and P
// panels of T tokens.
template <int T, int P>
__attribute__((noinline)) void multiply_quads(QuadsTile& tile, int row, float (*total)[kLanes],
                                              const QuadsRun& run) {
  constexpr int R = kSums / P, kColumns = 64 / T;
  constexpr int64_t kPanelBytes = kStepColumns * T;
  __m512i sum[R][P];
#pragma GCC unroll 24
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
    for (int p = 0; p < P; ++p) sum[r][p] = _mm512_load_si512(run.start + p * kLanes);
  }
  const uint8_t* w = tile.weights[row];
  const int8_t* x = run.x;
  // One panel of the next run for each tile of rows; of y what this tile will be stored to.
  const int64_t near = (P + row / R) * kPanelBytes;
  const bool more = row == 0 && run.next;
  const auto* next = more ? run.next : reinterpret_cast<const char*>(w);
  const auto* y = run.y ? run.y : reinterpret_cast<const char*>(w);
  const int64_t next_bytes = more ? 64 : 0, y_bytes = run.y ? run.y_bytes : 0;
  for (const uint8_t* const end = w + run.columns; w < end; w += kColumns, x += 64) {
    __builtin_prefetch(next, 0, kCodesToL2);
    next += next_bytes;
    __builtin_prefetch(x + near, 0, kFetchToL1);
    __builtin_prefetch(y, 1, kCodesToL2);
    y += y_bytes;
    __m512i tokens[P];
#pragma GCC unroll 3
    for (int p = 0; p < P; ++p) {
      tokens[p] = _mm512_load_si512(x + p * kPanelBytes);
      __asm__("" : "+v"(tokens[p]));
    }
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) {
      const __m512i weights = repeat_quads<T>(w + r * kStepColumns);
#pragma GCC unroll 3
      for (int p = 0; p < P; ++p) dot(sum[r][p], weights, tokens[p]);
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
    for (int p = 0; p < P; ++p) {
      __m512 v = _mm512_cvtepi32_ps(sum[r][p]);
      if (run.scales) {
        v = simd::mul(v, simd::splat(run.scales[(row + r < run.rows ? row + r : 0) * run.groups]));
      }
      float* to = total[r * P + p];
      _mm512_store_ps(to, simd::fma(v, _mm512_load_ps(run.step + p * kLanes), _mm512_load_ps(to)));
    }
  }
}

using Multiply = void (*)(QuadsTile&, int, float (*)[kLanes], const QuadsRun&);
constexpr Multiply kMultiply[] = {multiply_quads<16, 1>, multiply_quads<16, 2>,
                                  multiply_quads<16, 3>};

// Panels of the next run where `left` are left: two, and three at an odd end.
TAMIS_INLINE int64_t run_of(int64_t left) {
  return left == 3 ? 3 : left < 2 ? left : 2;
}

// Rows [row, row + rows) of the tokens of panels [first, first + count).
void store_quads(const SpmmArgs& a, const QuadsTile& tile, int64_t row, int rows, int64_t first,
                 int64_t count, int64_t tokens, bool scaled) {
  for (int64_t panel = 0, run; panel < count; panel += run) {
    run = run_of(count - panel);
    for (int64_t p = 0; p < run; ++p) {
      const int64_t token = (first + panel + p) * tokens;
      for (int r = 0; r < rows; r += 16) {
        store_panel(a, tile.total + panel * kRows + r * run + p, run, row + r,
                    rows - r < 16 ? rows - r : 16, token, tokens, scaled);
      }
    }
  }
}

void spmm_quads(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const XQuads x = quads_of(a, const_cast<void*>(a.prepared));
  if (few_tokens().expand_beside && x.panels == 1 && x.tokens == kQuadTokens) {
    return spmm_beside<kQuadTokens>(a, x, row_begin, row_end);
  }
  const auto* values = static_cast<const int8_t*>(a.w.values);
  const int64_t words = mask_words(a.w.cols), steps = step_count(a.w);
  const int64_t groups = a.w.group_size < a.w.cols ? ceil_div(a.w.cols, a.w.group_size) : 1;
  const int64_t ahead = code_rows_ahead(a.w, kRows), passes = ceil_div(x.panels, kPanels);
  const int64_t y_bytes = a.y_stride * size_of(a.x_dtype);
  PageWalks walks(a.w, row_begin, row_end);
  QuadsTile tile;
  std::memset(tile.weights, 0x80, sizeof tile.weights);
  for (int64_t row = row_begin; row < row_end; row += kRows) {
    const int rows = static_cast<int>(row_end - row < kRows ? row_end - row : kRows);
    walks.before(row + ahead + kRows);
    const int64_t next = row + ahead < a.w.rows ? row + ahead : a.w.rows;
    const int8_t* next_values = values + row_start(a.w, next);
    const uint64_t* next_mask = a.w.mask + next * words;
    const int64_t step_bytes =
        steps ? (row_start(a.w, row + rows) - row_start(a.w, row)) / steps : 0;
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t first_panel = x.panels * pass / passes;
      const int64_t count = x.panels * (pass + 1) / passes - first_panel;
      std::memset(tile.total, 0, static_cast<size_t>(count) * kRows * sizeof tile.total[0]);
      for (int r = 0; r < rows; ++r) tile.values[r] = values + row_start(a.w, row + r);
      for (Chunks chunk(a.w); chunk.more(); chunk.next()) {
        // Nothing new: what is here already.
        const char* fetch = reinterpret_cast<const char*>(tile.weights);
        const uint64_t* fetch_mask = a.w.mask + row * words;
        const bool more = pass == 0 && chunk.begin % kStepColumns == 0;
        if (more) {
          fetch = reinterpret_cast<const char*>(next_values);
          fetch_mask = next_mask;
          next_values += step_bytes;
          next_mask += rows * kStepWords;
        }
        expand_rows(a.w, tile, row, rows, chunk, fetch, fetch_mask);
        const char* next_line = more ? fetch + rows * 64 : nullptr;
        if (more) fetch_codes(next_line + kStepColumns * x.tokens, next_values);
        const int64_t first = chunk.begin / 64, last = ceil_div(chunk.end, 64);
        for (int64_t panel = 0, run; panel < count; panel += run, next_line = nullptr) {
          run = run_of(count - panel);
          const int64_t at = first_panel + panel;
          QuadsRun args{.columns = (last - first) * 64,
                        .x = x.at(chunk.step(), at) + first % kStepWords * 64 * x.tokens,
                        .start = x.starts + (chunk.index * x.panels + at) * kLanes,
                        .step = x.steps + (chunk.step() * x.panels + at) * kLanes,
                        .scales = groups > 1 ? a.w.scales + row * groups + chunk.group : nullptr,
                        .groups = groups,
                        .rows = rows,
                        .next = next_line,
                        .y = nullptr,
                        .y_bytes = y_bytes};
          for (int r = 0; r < rows; r += kSums / static_cast<int>(run)) {
            if (chunk.end == a.w.cols) {
              args.y = static_cast<const char*>(a.y) + at * x.tokens * y_bytes +
                       (row + r) * size_of(a.x_dtype);
            }
            const auto multiply = x.tokens == 8 ? multiply_quads<8, 1> : kMultiply[run - 1];
            multiply(tile, r, tile.total + panel * kRows + r * run, args);
          }
        }
      }
      store_quads(a, tile, row, rows, first_panel, count, x.tokens, groups > 1);
    }
  }
}

}  // namespace

#define TAMIS_QUADS_KERNEL(x, X)                                                               \
  const SpmmXForm spmm_quads_##x##_avx512vbmi2 = {quads_bytes, prepare<X>, true};              \
  void spmm_bitmap_i8_##x##_avx512vbmi2_quads(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_quads(a, begin, end);                                                                 \
  }                                                                                            \
  void spmm_nm_i8_##x##_avx512vbmi2_quads(const SpmmArgs& a, int64_t begin, int64_t end) {     \
    spmm_quads(a, begin, end);                                                                 \
  }

TAMIS_QUADS_KERNEL(f32, float)
TAMIS_QUADS_KERNEL(f16, F16)
TAMIS_QUADS_KERNEL(bf16, BF16)

#undef TAMIS_QUADS_KERNEL

}  // namespace tamis
