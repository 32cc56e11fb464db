// y[m,n] = sum_k x[m,k] * w[n,k] for many tokens, leaving out the zeros of w.  w: bitmap, nm, csr8;
// x: panels (panels-inl.h); accumulates f32, one chain per output.
//
// Tile: four rows of w times up to four panels. The units in which at least one of the four rows
// has a weight are sorted into 15 classes by which rows do; each class is a loop whose body loads
// the panels of a unit once and multiplies them by the rows of that class, broadcast. So a product
// costs an FMA only where a weight is, and loads are shared by two rows on average at half density.
// Order of a sum: by class, then by column.
//
// Memory: kSkipRows rows take turns over kUnits units, so that these units of x stay in L2.
//
// Needs: mask bits past k clear (format check).   Zero weights: skipped; in pairs both must be
// zero.
//
// Cost (Zen 4), per 64 columns of four rows, f32: 40 cycles to expand, 90 to sort, and per 64
// tokens the larger of 16 x 64 x density products and (4 x share of non-empty units + ...) loads;
// 15 loops that end in a mispredicted branch every kUnits units.
#pragma once

#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

inline constexpr int kQuadRows = 4;
inline constexpr int64_t kSkipRows = 64;
inline constexpr int64_t kSkipTokens = 256;

// Units of kUnits columns that have weights in the rows of each class, by class.
struct UnitClasses {
  uint16_t units[16][kUnits + 32];  // 32 more: whole vectors are stored
  int count[16];
};

struct UnitIndex {
  uint8_t byte[64];
  constexpr UnitIndex() : byte() {
    for (int i = 0; i < 64; ++i) byte[i] = static_cast<uint8_t>(i);
  }
};

// The units of one mask word that are not empty.
template <class Unit>
TAMIS_INLINE uint64_t units_in(uint64_t bits) {
  if (Unit::kColumns == 1) return bits;
  return _pext_u64(bits | bits >> 1, 0x5555555555555555u);
}

// Appends the units of one word, counted from `base`, to a class.
template <int kPerWord>
TAMIS_INLINE void append(UnitClasses& classes, int c, uint64_t bits, int base) {
  alignas(64) static constexpr UnitIndex kIndex;
  const __m512i first = _mm512_set1_epi16(static_cast<int16_t>(base));
  uint16_t* out = classes.units[c] + classes.count[c];
  const int count = simd::popcount(bits);
  const __m512i packed =
      _mm512_mask_compress_epi8(simd::opaque_zero(), bits, _mm512_load_si512(kIndex.byte));
  _mm512_storeu_si512(
      out, _mm512_add_epi16(first, _mm512_cvtepu8_epi16(_mm512_castsi512_si256(packed))));
  if (kPerWord == 64 && count > 32) {
    _mm512_storeu_si512(
        out + 32,
        _mm512_add_epi16(first, _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(packed, 1))));
  }
  classes.count[c] += count;
}

// The widest block of units has this many mask words, if units are pairs.
inline constexpr int64_t kMostWords = kUnits / 32;

template <class Unit>
TAMIS_INLINE void sort_units(const uint64_t (*masks)[kMostWords], int64_t words,
                             UnitClasses& classes) {
  constexpr int kPerWord = 64 / static_cast<int>(Unit::kColumns);
  for (int& count : classes.count) count = 0;
  for (int64_t i = 0; i < words; ++i) {
    uint64_t mine[kQuadRows];
    for (int r = 0; r < kQuadRows; ++r) mine[r] = units_in<Unit>(masks[r][i]);
    const uint64_t low[4] = {~mine[0] & ~mine[1], mine[0] & ~mine[1], ~mine[0] & mine[1],
                             mine[0] & mine[1]};
    const uint64_t high[4] = {~mine[2] & ~mine[3], mine[2] & ~mine[3], ~mine[2] & mine[3],
                              mine[2] & mine[3]};
#pragma GCC unroll 16
    for (int c = 1; c < 16; ++c) {
      const uint64_t bits = low[c % 4] & high[c / 4];
      append<kPerWord>(classes, c, bits, static_cast<int>(i) * kPerWord);
    }
  }
}

// The units of one class, whose bits say which rows have weights, times T panels.
template <class Unit, int kClass, int T>
TAMIS_INLINE void multiply_class(const UnitClasses& classes,
                                 const typename Unit::Element (*w)[kUnits],
                                 const typename Unit::Element* x, int64_t panel,
                                 simd::F32 (&sum)[kQuadRows][T]) {
  const uint16_t* units = classes.units[kClass];
  for (int i = 0; i < classes.count[kClass]; ++i) {
    const int64_t u = units[i];
    const auto* at = reinterpret_cast<const float*>(x + u * kLanes);
    simd::F32 tokens[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) tokens[t] = simd::load(at + t * panel);
#pragma GCC unroll 4
    for (int r = 0; r < kQuadRows; ++r) {
      if (!(kClass >> r & 1)) continue;
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) sum[r][t] = Unit::product(sum[r][t], &w[r][u], tokens[t]);
    }
  }
}

template <class Unit, int T>
TAMIS_INLINE void multiply_classes(const UnitClasses& classes,
                                   const typename Unit::Element (*w)[kUnits],
                                   const typename Unit::Element* x, int64_t panel, float* sums,
                                   int64_t stride, bool first) {
  simd::F32 sum[kQuadRows][T];
#pragma GCC unroll 4
  for (int r = 0; r < kQuadRows; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      sum[r][t] = first ? simd::zero() : simd::load(sums + r * stride + t * kLanes);
    }
  }
  multiply_class<Unit, 1, T>(classes, w, x, panel, sum);
  multiply_class<Unit, 2, T>(classes, w, x, panel, sum);
  multiply_class<Unit, 3, T>(classes, w, x, panel, sum);
  multiply_class<Unit, 4, T>(classes, w, x, panel, sum);
  multiply_class<Unit, 5, T>(classes, w, x, panel, sum);
  multiply_class<Unit, 6, T>(classes, w, x, panel, sum);
  multiply_class<Unit, 7, T>(classes, w, x, panel, sum);
  multiply_class<Unit, 8, T>(classes, w, x, panel, sum);
  multiply_class<Unit, 9, T>(classes, w, x, panel, sum);
  multiply_class<Unit, 10, T>(classes, w, x, panel, sum);
  multiply_class<Unit, 11, T>(classes, w, x, panel, sum);
  multiply_class<Unit, 12, T>(classes, w, x, panel, sum);
  multiply_class<Unit, 13, T>(classes, w, x, panel, sum);
  multiply_class<Unit, 14, T>(classes, w, x, panel, sum);
  multiply_class<Unit, 15, T>(classes, w, x, panel, sum);
#pragma GCC unroll 4
  for (int r = 0; r < kQuadRows; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) simd::store(sum[r][t], sums + r * stride + t * kLanes);
  }
}

// Rows [row_begin, row_end), at most kSkipRows, times tokens from the first lane of a panel on.
template <class Unit>
void skip_block(const SpmmArgs& a, int64_t row_begin, int64_t row_end, int64_t token,
                int64_t tokens) {
  using Element = typename Unit::Element;
  constexpr int64_t kWords = kUnits * Unit::kColumns / 64;
  const int64_t words = mask_words(a.w.cols);
  const int64_t panels = ceil_div(tokens, kLanes), stride = panels * kLanes;
  alignas(64) float sums[kSkipRows * kSkipTokens];
  alignas(64) Element weights[kQuadRows][kUnits];
  uint64_t masks[kQuadRows][kMostWords];
  UnitClasses classes;
  int64_t at[kSkipRows];

  if (words == 0) {
    for (int64_t i = 0; i < kSkipRows * stride; ++i) sums[i] = 0;
  }
  for (int64_t word = 0; word < words; word += kWords) {
    const int64_t here = words - word < kWords ? words - word : kWords;
    const PanelBlock<Unit> block(a, word * 64 / Unit::kColumns);
    const int64_t panel = block.panel();
    const auto* x = static_cast<const Element*>(a.prepared) + block.at + token / kLanes * panel;
    for (int64_t row = row_begin; row < row_end; row += kQuadRows) {
      Expander<Unit, kQuadRows> expander(a.w, row, row_end);
      for (int r = 0; r < expander.count && word > 0; ++r) {
        expander.at[r] = at[row - row_begin + r];
      }
      expander.expand(word, here, weights, masks);
      for (int r = 0; r < expander.count; ++r) at[row - row_begin + r] = expander.at[r];
      sort_units<Unit>(masks, here, classes);
      float* to = sums + (row - row_begin) * stride;
      int64_t p = 0;
      for (; p + 4 <= panels; p += 4) {
        multiply_classes<Unit, 4>(classes, weights, x + p * panel, panel, to + p * kLanes, stride,
                                  word == 0);
      }
      for (; p + 2 <= panels; p += 2) {
        multiply_classes<Unit, 2>(classes, weights, x + p * panel, panel, to + p * kLanes, stride,
                                  word == 0);
      }
      if (p < panels) {
        multiply_classes<Unit, 1>(classes, weights, x + p * panel, panel, to + p * kLanes, stride,
                                  word == 0);
      }
    }
  }
  for (int64_t row = row_begin; row < row_end; row += kQuadRows) {
    const int rows = static_cast<int>(row_end - row < kQuadRows ? row_end - row : kQuadRows);
    write_rows<typename Unit::X, kQuadRows>(a, sums + (row - row_begin) * stride, stride, row, rows,
                                            token, tokens);
  }
}

template <class Unit>
void spmm_skip(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; row += kSkipRows) {
    const int64_t end = row + kSkipRows < row_end ? row + kSkipRows : row_end;
    for (int64_t token = 0; token < a.m; token += kSkipTokens) {
      skip_block<Unit>(a, row, end, token, a.m - token < kSkipTokens ? a.m - token : kSkipTokens);
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_SKIP_FORM(x, level, Unit) \
  const SpmmXForm spmm_skip_##x##_##level = {panels_bytes<Unit>, prepare_panels<Unit>};
#define TAMIS_SKIP_KERNEL(format, w, x, level, Unit)                                               \
  void spmm_##format##_##w##_##x##_##level##_skip(const SpmmArgs& a, int64_t begin, int64_t end) { \
    spmm_skip<Unit>(a, begin, end);                                                                \
  }
#define TAMIS_SKIP_KERNELS(w, x, level, Unit)  \
  TAMIS_SKIP_KERNEL(bitmap, w, x, level, Unit) \
  TAMIS_SKIP_KERNEL(nm, w, x, level, Unit)     \
  TAMIS_SKIP_KERNEL(csr8, w, x, level, Unit)
