// groupq of u4 for several tokens on hosts whose vectors are two halves (Zen 4): lanes.
//
// y[m,n] = sum_k x[m,k] * w[n,k].  x: lanes (groupq_lanes.h), blocks of 8 or 16 tokens; for each
// stored group, listed by its place,
//   y += scale * step * sum(codes of w * codes of x) - scale * zero * step * sum(codes of x).
// Error: as in groupq_avx512vbmi2.cc.
//
// Tile: 16 rows times a block, or two of 16 tokens, whose x of kSpanBytes stays in L1. A row lists
// what it stores in a span, then each group is a loop turn: its packed codes are broadcast and
// split in registers, where lanes on other hosts split them to the stack. Counted for a group of 16
// on pipes of 256 bits, of which four start a cycle, and loads, of which two do: 8 tokens 17
// operations (9 on the pipes of products) and 10 loads, 16 tokens 28 (14) and 16, two blocks 44
// (28) and 28: 5, 8 and 14 cycles. Measured 5.9 and 9.3 in a loop of their own; with the listing of
// rows, cold, 8, 13 and 23. Tried, 4096x4096, half kept, 8 and 16 tokens, 1.15 and 1.87 ms: 16 KB
// of x a span 1.27 and 2.13; lines fetched to L1 and 3 KB ahead 1.18 and 1.91, all kept 2.67 for
// 2.07; codes split to the stack 1.31 (8 tokens).
//
// Needs: codes of missing tokens zero.   Tail: none; nothing is read past a row's last group.
// A token with NaN or Inf gets NaN where a row stores a group among those kStepColumns columns.
#include "base/simd/avx512.h"
#include "ops/spmm/codes-inl.h"
#include "ops/spmm/groupq_eights.h"
#include "ops/spmm/groupq_lanes.h"
#include "ops/spmm/kernels.h"

#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12, its own intrinsics

namespace tamis {
namespace {

constexpr int kRows = 16;
constexpr int64_t kSpanBytes = 32 * 1024;
// Codes fetched so far ahead where rows are one span, else those of the same span 16 rows on.
constexpr int64_t kCodesAhead = 6144;

struct ByGroup {
  static TAMIS_INLINE int64_t tokens(int64_t m) { return m <= 8 ? 8 : 16; }
  static TAMIS_INLINE bool by_token(const SpmmArgs&) { return false; }
};
using Lanes = XLanes<ByGroup>;

// The groups that a row stores in one span.
template <int kWords>
struct Listed {
  uint16_t place[64 * kWords + 32];
  alignas(64) float pair[2 * 64 * kWords + 16];  // scale, -scale * zero
};

// One span of the x of a block.
struct Span {
  const int8_t* codes;
  const char *sums, *steps;

  template <int G, int T>
  TAMIS_INLINE static Span of(const Lanes& x, int64_t group) {
    return {x.codes + group * (G * T), reinterpret_cast<const char*>(x.sums + group * T),
            reinterpret_cast<const char*>(x.steps + group * G / kStepColumns * 16)};
  }
};

// Sums of a row and block: of T tokens, 16 / T lanes each, and what offsets add, one lane a token.
struct RowSums {
  __m512 sum, rest;
};

// 64 / T packed bytes, repeated.
template <int T>
TAMIS_INLINE __m512i repeat(const uint8_t* p) {
  if constexpr (T == 8) {
    int64_t eight;
    __builtin_memcpy(&eight, p, 8);
    return _mm512_set1_epi64(eight);
  } else {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
}

// sum += w * the vector at x, which is not to become a load of its own.
TAMIS_INLINE void dot_at(__m512i& sum, __m512i w, const int8_t* x) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "m"(*reinterpret_cast<const __m512i*>(x)));
}

// The n listed groups, whose codes are at `codes`, times B blocks.
template <int G, int T, int B, int kWords>
TAMIS_INLINE void multiply(const Listed<kWords>& listed, int64_t n, const uint8_t* codes,
                           const Span (&x)[B], RowSums (&totals)[B]) {
  constexpr int kWidth = 64 / T, kPieces = G / 2 / kWidth;
  constexpr uint64_t kStepGroups = kStepColumns / G;
  const __m512i low = bytes_of(15);
  const float* pair = listed.pair;
  RowSums sums[B];  // in registers
#pragma GCC unroll 2
  for (int b = 0; b < B; ++b) sums[b] = totals[b];
  for (int64_t i = 0; i < n; ++i, codes += G / 2, pair += 2) {
    const uint64_t place = listed.place[i];
    __m512i dots[B];
#pragma GCC unroll 2
    for (__m512i& each : dots) each = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < kPieces; ++j) {
      const __m512i packed = repeat<T>(codes + j * kWidth);
      const __m512i first = _mm512_and_si512(packed, low);
      const __m512i second = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low);
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) {
        const int8_t* at = x[b].codes + place * (G * T);
        dot_at(dots[b], first, at + 64 * j);
        dot_at(dots[b], second, at + 64 * (kPieces + j));
      }
    }
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) {
      const auto* steps = reinterpret_cast<const float*>(x[b].steps + place / kStepGroups * 64);
      const auto* of_x = reinterpret_cast<const float*>(x[b].sums + place * (T * 4));
      const __m512 in_steps = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[b]), _mm512_load_ps(steps));
      sums[b].sum = simd::fma(in_steps, simd::splat(pair[0]), sums[b].sum);
      if constexpr (T == 8) {
        sums[b].rest = _mm512_castps256_ps512(
            _mm256_fmadd_ps(_mm256_load_ps(of_x), _mm256_broadcast_ss(pair + 1),
                            _mm512_castps512_ps256(sums[b].rest)));
      } else {
        sums[b].rest = simd::fma(_mm512_load_ps(of_x), simd::splat(pair[1]), sums[b].rest);
      }
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < B; ++b) totals[b] = sums[b];
}

// Rows [row, row + rows) of the tokens of blocks [block, block + B).
template <int G, int T, int B>
TAMIS_INLINE void tile_of_lanes(const SpmmArgs& a, int64_t row, int rows, int64_t block) {
  constexpr int64_t kMaskColumns = 64 * G;  // of a mask word
  constexpr int64_t kSpanColumns = kSpanBytes / (T * B);
  constexpr int kWords = kSpanColumns < kMaskColumns ? 1 : kSpanColumns / kMaskColumns;
  const int64_t words = mask_words(a.w.cols / G);
  auto* prepared = const_cast<void*>(a.prepared);
  Listed<kWords> listed;
  RowSums sums[kRows][B];
  int64_t at[kRows], ahead[kRows];  // groups, those to fetch too
  for (int r = 0; r < rows; ++r) {
    at[r] = a.w.row_offsets[row + r];
    const int64_t later = row + r + kRows < a.w.rows ? row + r + kRows : a.w.rows;
    ahead[r] = words > kWords ? a.w.row_offsets[later] - at[r] : kCodesAhead / (G / 2);
#pragma GCC unroll 2
    for (RowSums& each : sums[r]) each = {simd::zero(), simd::zero()};
  }
  for (int64_t word = 0; word < words; word += kWords) {
    const int64_t here = words - word < kWords ? words - word : kWords;
    Span x[B];
    for (int b = 0; b < B; ++b) x[b] = Span::of<G, T>(Lanes(a, prepared, block + b), word * 64);
    for (int r = 0; r < rows; ++r) {
      const auto* codes = static_cast<const uint8_t*>(a.w.values) + at[r] * (G / 2);
      const int64_t n = put_places(a.w.mask + (row + r) * words + word, here, 1, 0, listed.place);
      fetch_codes(codes + ahead[r] * (G / 2), codes + (ahead[r] + n) * (G / 2));
      const uint16_t* pairs = a.w.group_scales + 2 * at[r];
      if (words > kWords) fetch_codes(pairs + 2 * ahead[r], pairs + 2 * (ahead[r] + n));
      put_pairs(pairs, n, listed.pair);
      multiply<G, T, B>(listed, n, codes, x, sums[r]);
      at[r] += n;
    }
  }
  alignas(64) float out[T][kRows];
  for (int b = 0; b < B; ++b) {
    for (int r = 0; r < rows; ++r) {
      const __m512 rest = T == 8 ? _mm512_zextps256_ps512(_mm512_castps512_ps256(sums[r][b].rest))
                                 : sums[r][b].rest;
      alignas(64) float of_row[16];
      _mm512_store_ps(of_row, join_lanes<T>(sums[r][b].sum, rest));
      for (int t = 0; t < T; ++t) out[t][r] = of_row[t];
    }
    const int64_t token = (block + b) * T;
    for (int t = 0; t < T && token + t < a.m; ++t) {
      store_rows(a, _mm512_load_ps(out[t]), row, token + t, rows);
    }
  }
}

template <int G>
void spmm_lanes(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  PageWalks walks(a.w, row_begin, row_end);
  const int64_t blocks = ceil_div(a.m, 16);
  for (int64_t row = row_begin; row < row_end; row += kRows) {
    walks.before(row + 2 * kRows);
    const int rows = static_cast<int>(row_end - row < kRows ? row_end - row : kRows);
    if (a.m <= 8) {
      tile_of_lanes<G, 8, 1>(a, row, rows, 0);
      continue;
    }
    int64_t block = 0;
    for (; block + 2 <= blocks; block += 2) tile_of_lanes<G, 16, 2>(a, row, rows, block);
    if (block < blocks) tile_of_lanes<G, 16, 1>(a, row, rows, block);
  }
}

}  // namespace

#define TAMIS_LANES_KERNEL(x, X)                                                              \
  const SpmmXForm spmm_lanes_##x##_avx512bf16 = {.bytes = lanes_bytes<ByGroup>,               \
                                                 .prepare = prepare_lanes<ByGroup, X>,        \
                                                 .quantizes = true,                           \
                                                 .lanes = 8};                                 \
  void spmm_groupq_u4_##x##_avx512bf16_lanes(const SpmmArgs& a, int64_t begin, int64_t end) { \
    if (a.w.group_size == 16) return spmm_lanes<16>(a, begin, end);                           \
    spmm_lanes<32>(a, begin, end);                                                            \
  }

TAMIS_LANES_KERNEL(f32, float)
TAMIS_LANES_KERNEL(f16, F16)
TAMIS_LANES_KERNEL(bf16, BF16)

#undef TAMIS_LANES_KERNEL

}  // namespace tamis
