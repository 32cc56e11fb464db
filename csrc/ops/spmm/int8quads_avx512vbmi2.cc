// bitmap and nm of i8 for many tokens: weights expanded once into L1, then a dense product.
//
// y[m,n] = sum_k x[m,k] * w[n,k].  x: quads, i.e. [k/4][16 tokens][4 codes], so that one vector
// meets four broadcast weights of a row and no sum crosses lanes.  Error: as in codes-inl.h.
//
// Tile: 24 rows by 16 tokens: 24 accumulators, per four columns one load of x, 24 vpbroadcastd and
// 24 vpdpbusd, of which Zen 4 starts one a cycle: 64 products a cycle at most. The columns of one
// chunk are expanded (12 KB) for up to kPanels * 16 tokens at a time; totals are f32 (12 KB).
//
// Needs: codes of x past k and of missing tokens zero.
//
// Tail: rows past the last are computed on zeros and not stored; values as in codes-inl.h.
#include <cstring>

#include "base/simd/avx512.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/codes_avx512vbmi2.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/quads_avx512vbmi2.h"

#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12, its own intrinsics

namespace tamis {
namespace {

constexpr int kRows = 24;
constexpr int kLanes = kQuadTokens;
constexpr int kPanels = 8;  // panels per expansion

int64_t quads_bytes(const SpmmArgs& a) {
  return XQuads(a, nullptr).bytes;
}

struct QuadsTile {
  alignas(64) uint8_t weights[kRows][kStepColumns];  // w + 128
  alignas(64) float total[kRows + 8][kPanels][kLanes];
  const int8_t* values[kRows];
  const char* next;     // of later rows' values, fetched one line per four columns
  int64_t next_stride;  // 64, or 0 once they are
};

// The words of a chunk of one row, w + 128.
template <bool kExact>
TAMIS_INLINE const int8_t* expand_row(const uint64_t* mask, const int8_t* p, int64_t begin,
                                      int64_t end, uint8_t* to) {
  for (int64_t word = begin / 64; word * 64 < end; ++word, to += 64) {
    const uint64_t bits = *mask++ & bits_within(word, begin, end);
    _mm512_store_si512(to, expand_codes<kExact>(bits, p));
    p += simd::popcount(bits);
  }
  return p;
}

// total[r] += factor * (start + sum over quads of weights[r] * x), of one panel.
__attribute__((noinline)) void multiply_quads(QuadsTile& tile, int64_t panel, int64_t quads,
                                              const int8_t* x, const int32_t* start,
                                              const float* step, const float* scales,
                                              int64_t groups, int rows) {
  __m512i sum[kRows];
  const __m512i first = _mm512_load_si512(start);
#pragma GCC unroll 24
  for (int r = 0; r < kRows; ++r) sum[r] = first;
  const uint8_t* w = tile.weights[0];
  const char* next = tile.next;
  for (const uint8_t* const end = w + quads * 4; w < end; w += 4, x += 64) {
    __builtin_prefetch(next, 0, kCodesToL2);
    next += tile.next_stride;
    __m512i tokens = _mm512_load_si512(x);
    __asm__("" : "+v"(tokens));
#pragma GCC unroll 24
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      __builtin_memcpy(&four, w + r * kStepColumns, 4);
      dot(sum[r], _mm512_set1_epi32(four), tokens);
    }
  }
  const __m512 factor = _mm512_load_ps(step);
#pragma GCC unroll 24
  for (int r = 0; r < kRows; ++r) {
    __m512 v = _mm512_cvtepi32_ps(sum[r]);
    if (scales) v = simd::mul(v, simd::splat(scales[(r < rows ? r : 0) * groups]));
    float* total = tile.total[r][panel];
    _mm512_store_ps(total, simd::fma(v, factor, _mm512_load_ps(total)));
  }
}

// Rows [row, row + rows) of the tokens of panels [first, first + count).
void store_quads(const SpmmArgs& a, const QuadsTile& tile, int64_t row, int rows, int64_t first,
                 int64_t count, bool scaled) {
  for (int64_t panel = 0; panel < count; ++panel) {
    const int64_t token = (first + panel) * kLanes;
    for (int r = 0; r < rows; r += 16) {
      const int n = rows - r < 16 ? rows - r : 16;
      __m512i v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) v[i] = _mm512_load_si512(tile.total[r + i][panel]);
      transpose(v);
      const simd::F32 scale = scaled ? simd::splat(1.0f) : simd::load(a.w.scales + row + r, n);
      for (int t = 0; t < kLanes && token + t < a.m; ++t) {
        store_rows(a, simd::mul(_mm512_castsi512_ps(v[t]), scale), row + r, token + t, n);
      }
    }
  }
}

void spmm_quads(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  const XQuads x(a, const_cast<void*>(a.prepared));
  const auto* values = static_cast<const int8_t*>(a.w.values);
  const int8_t* values_end = values + a.w.nnz;
  const int64_t words = mask_words(a.w.cols), steps = step_count(a.w);
  const int64_t groups = a.w.group_size < a.w.cols ? ceil_div(a.w.cols, a.w.group_size) : 1;
  const int64_t ahead = code_rows_ahead(a.w, kRows);
  QuadsTile tile;
  tile.next = reinterpret_cast<const char*>(values);
  std::memset(tile.weights, 0x80, sizeof tile.weights);
  for (int64_t row = row_begin; row < row_end; row += kRows) {
    const int rows = static_cast<int>(row_end - row < kRows ? row_end - row : kRows);
    const int64_t next = row + ahead < a.w.rows ? row + ahead : a.w.rows;
    const int8_t* next_values = values + code_row_start(a.w, next);
    const uint64_t* next_mask = a.w.mask + next * words;
    const int64_t step_bytes =
        steps ? (code_row_start(a.w, row + rows) - code_row_start(a.w, row)) / steps : 0;
    for (int64_t panel = 0; panel < x.panels; panel += kPanels) {
      const int64_t count = x.panels - panel < kPanels ? x.panels - panel : kPanels;
      std::memset(tile.total, 0, sizeof tile.total);
      for (int r = 0; r < rows; ++r) tile.values[r] = values + code_row_start(a.w, row + r);
      for (Chunks chunk(a.w); chunk.more(); chunk.next()) {
        if (panel == 0 && chunk.begin % kStepColumns == 0) {
          tile.next = reinterpret_cast<const char*>(next_values);
          next_values += step_bytes;
          fetch_codes(tile.next + kStepColumns / 4 * 64, next_values);
          fetch_codes(next_mask, next_mask + rows * kStepWords);
          next_mask += rows * kStepWords;
        }
        const int64_t first = chunk.begin / 64, last = ceil_div(chunk.end, 64);
        for (int r = 0; r < rows; ++r) {
          const uint64_t* mask = a.w.mask + (row + r) * words + first;
          const int8_t*& p = tile.values[r];
          p = values_end - p < (last - first + 1) * 64
                  ? expand_row<true>(mask, p, chunk.begin, chunk.end, tile.weights[r])
                  : expand_row<false>(mask, p, chunk.begin, chunk.end, tile.weights[r]);
        }
        const int64_t in_step = first % kStepWords * 64 * kLanes;
        tile.next_stride = panel == 0 ? 64 : 0;
        for (int64_t i = 0; i < count; ++i, tile.next_stride = 0) {
          const int64_t at = chunk.index * x.panels + panel + i;
          multiply_quads(
              tile, i, (last - first) * 16, x.at(chunk.step(), panel + i) + in_step,
              x.starts + at * kLanes, x.steps + (chunk.step() * x.panels + panel + i) * kLanes,
              groups > 1 ? a.w.scales + row * groups + chunk.group : nullptr, groups, rows);
        }
      }
      store_quads(a, tile, row, rows, panel, count, groups > 1);
    }
  }
}

}  // namespace

#define TAMIS_QUADS_KERNEL(x, X)                                                               \
  const SpmmXForm spmm_quads_##x##_avx512vbmi2 = {quads_bytes, prepare_quads<X>, true};        \
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
