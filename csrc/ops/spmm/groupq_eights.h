// y[m,n] = sum_k x[m,k] * w[n,k] for one token.  w: groupq; x: eights, i.e. f32 as `groups` has it
// and then a group of zeros; products and sums f32, 16 lanes of a row in one chain.
//
// Tile: eight rows. A row at a time pays for its start: two loops whose ends nobody can predict,
// and sums of 16 lanes, cost as much as 18 groups, all that a row of 576 inputs has at half
// density. Here eight rows take turns, group by group, as many turns as the longest has groups; a
// row that has fewer meets the zeros of x, and the codes and scales of the row after it. A NaN or
// Inf among those scales would spoil it too, so a tile with a NaN starts again, row by row. Scales
// and zero points of the tile are one run of memory: converted eight groups at a time, in place.
// Operations of ports 0 and 5: 4 a group, and 0.4 for its scale, 0.3 for its place.
//
// Rows that differ by more than kMostApart groups, wide ones and the last ones of w, whose
// neighbours are not there to be read, go one at a time (groupq-inl.h).
#pragma once

#include "ops/spmm/groupq-inl.h"
#include "ops/spmm/groupq_level512.h"

namespace tamis {
namespace {

inline constexpr int kEights = 8;
inline constexpr int64_t kMostEightsGroups = 128;  // of a row; beyond, its start costs little
inline constexpr int64_t kMostApart = 32;
inline constexpr int64_t kEightsAhead = 4096;

TAMIS_INLINE int64_t eights_bytes(const SpmmArgs& a) {
  return groups_bytes(a) + a.w.group_size * 4;
}

template <class X>
TAMIS_INLINE void prepare_eights(const SpmmArgs& a, void* prepared, int part, int parts) {
  prepare_groups<Level512, X>(a, prepared, part, parts);
  if (part > 0) return;
  auto* zeros = static_cast<float*>(prepared) + a.m * a.w.cols;
  for (int64_t i = 0; i < a.w.group_size; ++i) zeros[i] = 0.0f;
}

// Where x has the columns of the stored groups of one row, in bytes; then `absent` 32 times.
// Returns how many there are.
TAMIS_INLINE int64_t put_places(const uint64_t* mask, int64_t words, uint32_t step, uint32_t absent,
                                uint16_t* out) {
  alignas(64) static constexpr uint16_t kLanes[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                                      11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                                      22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
  const __m512i none = _mm512_set1_epi16(static_cast<int16_t>(absent));
  const __m512i more = _mm512_set1_epi16(static_cast<int16_t>(32 * step));
  __m512i place =
      _mm512_mullo_epi16(_mm512_load_si512(kLanes), _mm512_set1_epi16(static_cast<int16_t>(step)));
  uint16_t* to = out;
  for (int64_t w = 0; w < words; ++w) {
    uint64_t bits = mask[w];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, bits >>= 32) {
      const auto mine = static_cast<__mmask32>(bits);
      _mm512_storeu_si512(to, _mm512_mask_compress_epi16(none, mine, place));
      to += simd::popcount(mine);
      place = _mm512_add_epi16(place, more);
    }
  }
  _mm512_storeu_si512(to, none);
  return to - out;
}

// Scale and -scale * zero of n groups, side by side, from their f16 pairs.
TAMIS_INLINE void put_pairs(const uint16_t* from, int64_t n, float* to) {
  const auto convert = [](__m256i halves) __attribute__((always_inline)) {
    const __m512 pair = _mm512_cvtph_ps(halves);
    return _mm512_mask_fnmadd_ps(pair, 0xaaaa, _mm512_permute_ps(pair, 0xb1), _mm512_setzero_ps());
  };
  for (; n >= 8; n -= 8, from += 16, to += 16) {
    __builtin_prefetch(from + kEightsAhead / 4, 0, kGroupsToL2);
    _mm512_store_ps(to, convert(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  }
  const auto there = static_cast<__mmask16>(_bzhi_u32(0xffff, static_cast<unsigned>(2 * n)));
  _mm512_store_ps(to, convert(_mm256_maskz_loadu_epi16(there, from)));
}

struct Eights {
  alignas(64) uint16_t place[kEights][kMostEightsGroups + 64];
  alignas(64) float pair[2 * kEights * kMostEightsGroups + 2 * kMostApart + 16];
};

// Rows [row, row + 8); false if this is not for them.
template <class Step>
TAMIS_INLINE bool eight_rows(const SpmmArgs& a, int64_t row, Eights& e) {
  const int64_t groups = a.w.cols / Step::kColumns, words = mask_words(groups);
  const int64_t* offsets = a.w.row_offsets + row;
  int64_t most = 0, least = groups;
#pragma GCC unroll 8
  for (int r = 0; r < kEights; ++r) {
    const int64_t n = offsets[r + 1] - offsets[r];
    most = n > most ? n : most;
    least = n < least ? n : least;
  }
  const int64_t begin = offsets[0], end = offsets[kEights - 1] + most;
  if (most - least > kMostApart || end > a.w.row_offsets[a.w.rows]) return false;
#pragma GCC unroll 8
  for (int r = 0; r < kEights; ++r) {
    put_places(a.w.mask + (row + r) * words, words, Step::kColumns * 4,
               static_cast<uint32_t>(groups) * Step::kColumns * 4, e.place[r]);
  }
  put_pairs(a.w.group_scales + 2 * begin, end - begin, e.pair);

  const uint8_t* codes = static_cast<const uint8_t*>(a.w.values) + begin * Step::kBytes;
  const auto* x = static_cast<const char*>(a.prepared);
  for (int64_t p = 0; p < (end - begin) * Step::kBytes; p += 64) {
    __builtin_prefetch(codes + p + kEightsAhead, 0, kGroupsToL2);
  }
  simd::F32 sum[kEights];
  int64_t at[kEights];
#pragma GCC unroll 8
  for (int r = 0; r < kEights; ++r) {
    sum[r] = simd::zero();
    at[r] = offsets[r] - begin;
  }
  for (int64_t i = 0; i < most; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < kEights; ++r) {
      simd::F32 w[Step::kColumns / simd::kLanes];
      Step::weights(codes + at[r] * Step::kBytes, e.pair[2 * at[r]], e.pair[2 * at[r] + 1], w);
      const auto* columns = reinterpret_cast<const float*>(x + e.place[r][i]);
#pragma GCC unroll 2
      for (int j = 0; j < Step::kColumns / simd::kLanes; ++j) {
        sum[r] = simd::fma(w[j], simd::load(columns + j * simd::kLanes), sum[r]);
      }
      ++at[r];
    }
  }
  const simd::F32 sums = simd::sums(sum);
  if (_mm512_cmp_ps_mask(sums, sums, _CMP_UNORD_Q) & ((1u << kEights) - 1)) return false;
  store_rows(a, sums, row, 0, kEights);
  return true;
}

template <class Step>
void spmm_eights(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  if (a.m != 1 || a.w.cols / Step::kColumns > kMostEightsGroups) {
    return spmm_groupq<Step>(a, row_begin, row_end);
  }
  Eights e;
  int64_t row = row_begin;
  for (; row + kEights <= row_end; row += kEights) {
    if (!eight_rows<Step>(a, row, e)) groupq_pass<Step, 1>(a, row, row + kEights, 0);
  }
  if (row < row_end) groupq_pass<Step, 1>(a, row, row_end, 0);
}

}  // namespace
}  // namespace tamis
