// groupq for many tokens of bf16: weights decoded to bf16 once for up to kMostTokens tokens, then
// the loop of panels-inl.h.
//
// w = scale * code + offset is made in f32 and rounded to bf16, so it errs by up to 2^-8 of itself;
// x keeps its digits, which 8-bit codes of it (lanes) do not.
//
// Cost, Zen 4: some 30 cycles for 64 columns of a row to decode, whatever is stored of them, then
// products as in panels. With fewer than four fifths of the groups stored, or up to 64 tokens,
// products of codes (lanes) are faster.
#include "ops/spmm/bf16_pair.h"
#include "ops/spmm/groupq_pairs.h"
#include "ops/spmm/kernels.h"
#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

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
      put_groups<kW, G>(codes, w.group_scales + 2 * group, bits, out);
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
