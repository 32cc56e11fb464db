// groupq for many tokens of bf16: weights decoded to bf16 once for up to kMostTokens tokens, then
// the loop of panels-inl.h.
//
// w = scale * code + offset is made in f32 and rounded to bf16, so it errs by up to 2^-8 of itself;
// x keeps its digits, which 8-bit codes of it (lanes) do not.
//
// 64 columns at a time: the codes and scales of their groups expand to their places, zeros where
// none is stored. Of 4 bits: the 16 weights of two groups are a table in one register, from which
// vpermw takes 32 columns.
//
// Cost, Zen 4: some 30 cycles for 64 columns of a row to decode, whatever is stored of them, then
// products as in panels. With fewer than four fifths of the groups stored, or up to 64 tokens,
// products of codes (lanes) are faster.
#include "ops/spmm/bf16_pair.h"
#include "ops/spmm/groupq_avx512.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

// Of 16 columns, scale and offset; zeros for columns that are not stored.
struct ColumnPairs {
  alignas(32) float of[4][2];
};

// The stored groups of 64 columns, `bits` of them, whose scales are at `from`.
template <int G>
TAMIS_INLINE void put_pairs(const uint16_t* from, uint32_t bits, ColumnPairs& to) {
  const __m256 halves =
      _mm256_cvtph_ps(_mm_maskz_expandloadu_epi32(static_cast<__mmask8>(bits), from));
  __m256 pairs =
      _mm256_mask_fnmadd_ps(halves, 0xaa, _mm256_permute_ps(halves, 0xb1), _mm256_setzero_ps());
  if (G == 32) pairs = _mm256_permutevar8x32_ps(pairs, _mm256_setr_epi32(0, 1, 0, 1, 2, 3, 2, 3));
  _mm256_store_ps(to.of[0], pairs);
}

// Two vectors of f32 as one of bf16, a first.
TAMIS_INLINE __m512i narrow(__m512 a, __m512 b) {
  return (__m512i)_mm512_cvtne2ps_pbh(b, a);
}

// The groups of 64 columns, whose codes are at p, to `out`.
template <int G>
TAMIS_INLINE void put_u4(const uint8_t* p, uint32_t bits, const ColumnPairs& pairs, uint32_t* out) {
  const uint32_t qwords = G == 16 ? bits : _pdep_u32(bits, 5) * 3;
  const __m512i codes =
      split_halves<G>(_mm256_maskz_expandloadu_epi64(static_cast<__mmask8>(qwords), p));
  const __m512 of_code = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i second = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const float (*two)[2] = pairs.of + 2 * j;
    const __m512i table =
        narrow(simd::fma(of_code, simd::splat(two[0][0]), simd::splat(two[0][1])),
               simd::fma(of_code, simd::splat(two[1][0]), simd::splat(two[1][1])));
    const __m256i half =
        j == 0 ? _mm512_castsi512_si256(codes) : _mm512_extracti64x4_epi64(codes, 1);
    const __m512i place = _mm512_or_si512(_mm512_cvtepu8_epi16(half), second);
    _mm512_store_si512(out + 16 * j, _mm512_permutexvar_epi16(place, table));
  }
}

template <int G>
TAMIS_INLINE void put_u8(const uint8_t* p, uint32_t bits, const ColumnPairs& pairs, uint32_t* out) {
  const uint32_t qwords = G == 16 ? _pdep_u32(bits, 0x55) * 3 : _pdep_u32(bits, 0x11) * 15;
  alignas(64) uint8_t codes[64];
  _mm512_store_si512(codes, _mm512_maskz_expandloadu_epi64(static_cast<__mmask8>(qwords), p));
#pragma GCC unroll 2
  for (int j = 0; j < 4; j += 2) {
    __m512 w[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const auto* mine = reinterpret_cast<const __m128i*>(codes + 16 * (j + i));
      const float* pair = pairs.of[j + i];
      w[i] = simd::fma(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128(mine))),
                       simd::splat(pair[0]), simd::splat(pair[1]));
    }
    _mm512_store_si512(out + 8 * j, narrow(w[0], w[1]));
  }
}

// Rows [row_begin, row_end), at most kGroupRows, and the next stored group of each.
template <DType kW, int G>
struct GroupRows {
  using Unit = Bf16Pair;
  static constexpr int64_t kBytes = kW == DType::u4 ? G / 2 : G;
  static constexpr int64_t kWordGroups = 64 / G;

  const MatrixView& w;
  int64_t row_begin, row_end;
  int64_t at[kGroupRows];

  TAMIS_INLINE GroupRows(const MatrixView& w_of, int64_t begin, int64_t end)
      : w(w_of), row_begin(begin), row_end(end) {
    for (int64_t r = begin; r < end; ++r) at[r - begin] = w.row_offsets[r];
  }
  TAMIS_INLINE void expand(int64_t row, int64_t word, int64_t words,
                           uint32_t (&out)[kPanelRows][kUnits]) {
    for (int r = 0; r < kPanelRows; ++r) {
      if (row + r < row_end) {
        expand_row(row + r, word, words, out[r]);
      } else {
        __builtin_memset(out[r], 0, static_cast<size_t>(words * 128));
      }
    }
  }
  TAMIS_INLINE void expand_row(int64_t row, int64_t word, int64_t words, uint32_t* out) {
    const uint64_t* mask = w.mask + row * mask_words(w.cols / G);
    int64_t group = at[row - row_begin];
    for (int64_t i = word; i < word + words; ++i, out += 32) {
      const int64_t first = i * kWordGroups;
      const auto bits =
          static_cast<uint32_t>(mask[first / 64] >> (first % 64)) & ((1u << kWordGroups) - 1);
      const auto* codes = static_cast<const uint8_t*>(w.values) + group * kBytes;
      ColumnPairs pairs;
      put_pairs<G>(w.group_scales + 2 * group, bits, pairs);
      if constexpr (kW == DType::u4) {
        put_u4<G>(codes, bits, pairs, out);
      } else {
        put_u8<G>(codes, bits, pairs, out);
      }
      group += simd::popcount(bits);
    }
    at[row - row_begin] = group;
  }
  TAMIS_INLINE void fetch(int64_t row, int64_t word, int64_t words) const {
    const int64_t all = mask_words(w.cols);
    const bool next = word == all;
    const int64_t after = row + (row_end - row_begin);
    if (next && after >= w.rows) return;
    const int64_t group = next ? w.row_offsets[after] : at[row - row_begin];
    const int64_t groups = w.nnz / G * words / (w.rows * all), of_mask = mask_words(w.cols / G);
    fetch_to_l2(static_cast<const uint8_t*>(w.values) + group * kBytes, groups * kBytes + 64);
    fetch_to_l2(w.group_scales + 2 * group, groups * 4);
    if (next) fetch_to_l2(w.mask + after * of_mask, of_mask * 8);
  }
};

template <DType kW>
void spmm_group_panels(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  if (a.w.group_size == 16) return spmm_panels<GroupRows<kW, 16>>(a, row_begin, row_end);
  spmm_panels<GroupRows<kW, 32>>(a, row_begin, row_end);
}

}  // namespace

void spmm_groupq_u4_bf16_avx512bf16_panels(const SpmmArgs& a, int64_t begin, int64_t end) {
  spmm_group_panels<DType::u4>(a, begin, end);
}
void spmm_groupq_u8_bf16_avx512bf16_panels(const SpmmArgs& a, int64_t begin, int64_t end) {
  spmm_group_panels<DType::u8>(a, begin, end);
}

}  // namespace tamis
