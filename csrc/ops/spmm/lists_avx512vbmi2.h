// Lists of columns with VBMI2, 3 to 32 tokens: bytes, by vpcompressb.
//
// x: T tokens of a column are 8, 16 or 32 floats; zero past k. A block is 256 columns, 8 to 32 KB
// of x, so that a column is a byte; a list of them ends once for four words.
//
// Each weight, copied to all lanes from a load of four, is multiplied by a column, in four chains
// per output.   Tail: the last none to three weights of a list by masks.
//
// Cost, Zen 4, cycles for 64 columns of a row, 4096x4096, cold, f32 at 0.5, 0.3, 0.2, 0.1 kept: 8
// tokens 49, 33, 25, 16.5; 16 tokens 59, 40, 29.5, 19; 32 tokens 98, 62, 45, 27. In a loop of its
// own a weight takes 1.1 with 8 tokens and 1.4 with 16 (a load of 512 bits starts once a cycle),
// the end of a list 4 a word; listing takes 2.6 (vpcompressb and kmovq, 4 times a list).
// Tried: blocks of 128 columns, 11 more (32 tokens, whose x then leaves room in L1: 4 to 11);
// weights broadcast one by one, 0.2 to 0.4 a weight more; each byte of the list loaded by itself,
// 0.12 more with 16 tokens; a row's values fetched to L1 two rows ahead, 0 to 1 more; groups of
// 128, 192, 384 and 512 KB, the same; addresses without an index register, 1 to 7 more; lists
// stored 32 bytes at a time, 0.4 to 0.7 less where few are stored, 12 more at half density; one
// function for all of it, 2 more (registers spilled).
#pragma once

#include <type_traits>

#include "base/simd/avx512.h"
#include "ops/spmm/lists-inl.h"

namespace tamis {
namespace {

inline constexpr int64_t kListWords = 4;  // so that a column is a byte
inline constexpr int64_t kListColumns = 64 * kListWords;

// ---- the x form

template <int T>
int64_t lists_bytes(const SpmmArgs& a) {
  return ceil_div(a.m, T) * T * mask_words(a.w.cols) * 64 * 4;
}

template <class X, int T>
void prepare_lists(const SpmmArgs& a, void* prepared, int part, int parts) {
  constexpr int kSome = T < 16 ? T : 16;  // tokens at a time
  const int64_t words = mask_words(a.w.cols);
  const int64_t first = words * part / parts * 64, last = words * (part + 1) / parts * 64;
  for (int64_t token = 0; token < ceil_div(a.m, T) * T; token += kSome) {
    float* out = static_cast<float*>(prepared) + (token / T * T * words * 64 + token % T);
    for (int64_t column = first; column < last; column += 16) {
      const int64_t left = a.w.cols - column;
      const int there = static_cast<int>(left < 0 ? 0 : left < 16 ? left : 16);
      __m512i v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const int64_t row = token + i < a.m ? token + i : a.m - 1;
        const X* x = static_cast<const X*>(a.x) + row * a.x_stride + (there ? column : 0);
        v[i] = i < kSome ? _mm512_castps_si512(simd::load(x, there)) : _mm512_setzero_si512();
      }
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        float* mine = out + (column + i) * T;
        if constexpr (kSome == 16) {
          _mm512_store_si512(mine, v[i]);
        } else {
          _mm256_store_si256(reinterpret_cast<__m256i*>(mine), _mm512_castsi512_si256(v[i]));
        }
      }
    }
  }
}

// ---- lists

// Columns that a row stores of a block, then four zeros at least; and its weights as f32.
template <class W>
struct RowList {
  int64_t n;
  const float* values;
  uint8_t columns[kListColumns + 64];
  alignas(64) float floats[kListColumns + 16];  // unless W is f32
};

// 0 to 255.
struct ListNumbers {
  alignas(64) uint8_t of[kListColumns] = {};
  constexpr ListNumbers() {
    for (int i = 0; i < kListColumns; ++i) of[i] = static_cast<uint8_t>(i);
  }
};
inline constexpr ListNumbers kListNumbers;

// Lists `count` words of a row by their masks; returns how many columns there are.
template <bool kWhole>
TAMIS_INLINE int64_t list_columns(const uint64_t* mask, int64_t count, uint8_t* out) {
  const uint8_t* const begin = out;
#pragma GCC unroll 4
  for (int64_t i = 0; i < kListWords; ++i) {
    const uint64_t bits = kWhole || i < count ? mask[i] : 0;
    const __m512i numbers = _mm512_load_si512(kListNumbers.of + 64 * i);
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi8(bits, numbers));
    out += simd::popcount(bits);
  }
  __builtin_memset(out, 0, 4);
  return out - begin;
}
// The same by the numbers of columns stored, and which.
template <bool kWhole>
TAMIS_INLINE int64_t list_columns(const uint8_t* counts, int64_t count, const uint8_t* columns,
                                  uint8_t* out) {
  const uint8_t* const begin = out;
#pragma GCC unroll 4
  for (int64_t i = 0; i < kListWords; ++i) {
    const int64_t n = kWhole || i < count ? counts[i] : 0;
    const __m512i mine = _mm512_maskz_loadu_epi8(_bzhi_u64(~uint64_t{0}, n), columns);
    _mm512_storeu_si512(out, _mm512_add_epi8(mine, _mm512_set1_epi8(static_cast<char>(64 * i))));
    columns += n;
    out += n;
  }
  __builtin_memset(out, 0, 4);
  return out - begin;
}

// n weights as f32, where they lie or copied to `floats`.
TAMIS_INLINE const float* list_values(const float* p, int64_t, float*) {
  return p;
}
template <class W>
TAMIS_INLINE const float* list_values(const W* p, int64_t n, float* floats) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) simd::store(simd::load(p + i), floats + i);
  simd::store(simd::load(p + i, static_cast<int>(n - i)), floats + i);
  return floats;
}

// ---- products

// T tokens: one vector of them, or two.
struct Lanes8 {
  static constexpr int kTokens = 8;
  using F = __m256;
  static TAMIS_INLINE F load(const float* p) { return _mm256_load_ps(p); }
  static TAMIS_INLINE void store(F v, float* p) { _mm256_store_ps(p, v); }
  static TAMIS_INLINE F zero() { return _mm256_setzero_ps(); }
  static TAMIS_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  static TAMIS_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static TAMIS_INLINE F fma_if(bool counts, F a, F b, F c) {
    return _mm256_mask3_fmadd_ps(a, b, c, static_cast<__mmask8>(-int{counts}));
  }
  static TAMIS_INLINE F four(__m128 v) { return _mm256_set_m128(v, v); }
  template <int kLane>
  static TAMIS_INLINE F lane(F v) {
    return _mm256_permute_ps(v, 0x55 * kLane);
  }
};
struct Lanes16 {
  static constexpr int kTokens = 16;
  using F = __m512;
  static TAMIS_INLINE F load(const float* p) { return _mm512_load_ps(p); }
  static TAMIS_INLINE void store(F v, float* p) { _mm512_store_ps(p, v); }
  static TAMIS_INLINE F zero() { return _mm512_setzero_ps(); }
  static TAMIS_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  static TAMIS_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static TAMIS_INLINE F fma_if(bool counts, F a, F b, F c) {
    return _mm512_mask3_fmadd_ps(a, b, c, static_cast<__mmask16>(-int{counts}));
  }
  static TAMIS_INLINE F four(__m128 v) { return _mm512_broadcast_f32x4(v); }
  template <int kLane>
  static TAMIS_INLINE F lane(F v) {
    return _mm512_permute_ps(v, 0x55 * kLane);
  }
};
template <int T>
struct ListLanes {
  using Lanes = std::conditional_t<T == 8, Lanes8, Lanes16>;
  static constexpr int kVectors = T / Lanes::kTokens;
};

// sum += lane kLane of four weights times a column of x.
template <int kLane, class Lanes, int V>
TAMIS_INLINE void add_column(typename Lanes::F (&sum)[V], typename Lanes::F four, const float* x) {
  const auto weight = Lanes::template lane<kLane>(four);
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    sum[v] = Lanes::fma(weight, Lanes::load(x + v * Lanes::kTokens), sum[v]);
  }
}
// The same if it counts: zero times a column would be NaN where that is not finite.
template <int kLane, class Lanes, int V>
TAMIS_INLINE void add_column_if(bool counts, typename Lanes::F (&sum)[V], typename Lanes::F four,
                                const float* x) {
  const auto weight = Lanes::template lane<kLane>(four);
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    sum[v] = Lanes::fma_if(counts, weight, Lanes::load(x + v * Lanes::kTokens), sum[v]);
  }
}

// sums += n weights times their columns of x.
template <int T>
TAMIS_INLINE void add_list(const uint8_t* column, const float* value, int64_t n, const float* x,
                           float* sums) {
  using Lanes = typename ListLanes<T>::Lanes;
  constexpr int V = ListLanes<T>::kVectors;
  typename Lanes::F sum[4][V];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    sum[0][v] = Lanes::load(sums + v * Lanes::kTokens);
    sum[1][v] = sum[2][v] = sum[3][v] = Lanes::zero();
  }
  uint32_t columns;  // one load for four: loads are the limit
  for (; n >= 4; n -= 4, column += 4, value += 4) {
    const auto four = Lanes::four(_mm_loadu_ps(value));
    __builtin_memcpy(&columns, column, 4);
    add_column<0, Lanes, V>(sum[0], four, x + (columns & 255) * T);
    add_column<1, Lanes, V>(sum[1], four, x + (columns >> 8 & 255) * T);
    add_column<2, Lanes, V>(sum[2], four, x + (columns >> 16 & 255) * T);
    add_column<3, Lanes, V>(sum[3], four, x + (columns >> 24) * T);
  }
  const auto last = static_cast<__mmask8>(simd::first(static_cast<int>(n)));
  const auto four = Lanes::four(_mm_maskz_loadu_ps(last, value));
  __builtin_memcpy(&columns, column, 4);
  add_column_if<0, Lanes, V>(n > 0, sum[0], four, x + (columns & 255) * T);
  add_column_if<1, Lanes, V>(n > 1, sum[1], four, x + (columns >> 8 & 255) * T);
  add_column_if<2, Lanes, V>(n > 2, sum[2], four, x + (columns >> 16 & 255) * T);
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const auto low = Lanes::add(sum[0][v], sum[1][v]), high = Lanes::add(sum[2][v], sum[3][v]);
    Lanes::store(Lanes::add(low, high), sums + v * Lanes::kTokens);
  }
}

template <class WType, int T>
struct Lists {
  using W = WType;
  using Row = RowList<W>;
  static constexpr int64_t kTokens = T;
  static constexpr int64_t kWords = kListWords;
  static constexpr int64_t kStride = T < 16 ? 16 : T;
  static constexpr int64_t kGroupBytes = 256 * 1024;
  static constexpr int64_t kBlockStep = kListColumns * T;
  static constexpr int64_t pass_floats(int64_t words) { return words * 64 * T; }

  // A way for whole blocks.
  template <class Cell, class Fn>
  static TAMIS_INLINE void with_ways(int64_t, int64_t count, const Fn& fn) {
    count < kWords ? fn(std::false_type()) : fn(std::true_type());
  }
  template <bool kWhole>
  static TAMIS_INLINE void list(const uint64_t* masks, int64_t count, Row& row) {
    row.n = list_columns<kWhole>(masks, count, row.columns);
  }
  template <bool kWhole>
  static TAMIS_INLINE void list(const uint8_t* counts, int64_t count, const uint8_t* columns,
                                const uint8_t*, Row& row) {
    row.n = list_columns<kWhole>(counts, count, columns, row.columns);
  }
  static TAMIS_INLINE void take(const W* p, const W*, Row& row) {
    row.values = list_values(p, row.n, row.floats);
  }
  static TAMIS_INLINE void add(const Row& row, const W*, const float* x, float* sums) {
    add_list<T>(row.columns, row.values, row.n, x, sums);
  }
  template <class X>
  static void write(const SpmmArgs& a, const float* sums, int64_t row, int64_t rows,
                    int64_t token) {
    write_squares<Lists, X>(a, sums, row, rows, token);
  }
};

}  // namespace
}  // namespace tamis

#define TAMIS_LISTS_FORMS(x, level, X)                                                \
  const SpmmXForm spmm_lists_##x##_##level = {lists_bytes<16>, prepare_lists<X, 16>}; \
  const SpmmXForm spmm_widelists_##x##_##level = {lists_bytes<32>, prepare_lists<X, 32>};
#define TAMIS_OCTETLISTS_FORM(x, level, X) \
  const SpmmXForm spmm_octetlists_##x##_##level = {lists_bytes<8>, prepare_lists<X, 8>};
#define TAMIS_LISTS_KERNELS(w, x, level, W, X)      \
  TAMIS_LISTS_FORMATS(w, x, level, lists, W, X, 16) \
  TAMIS_LISTS_FORMATS(w, x, level, widelists, W, X, 32)
