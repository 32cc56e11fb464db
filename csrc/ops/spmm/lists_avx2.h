// Lists of columns on AVX2, 1 to 16 tokens: 16-bit places.
//
// x: T tokens of a column are 1, 4, 8 or 16 floats. A block is 4096 / T columns, 16 KB, and behind
// it a column of zeros, for places of a list that hold no weight.
//
// Each weight, copied to all lanes from a load of four, is multiplied by a column, in four chains
// per output; with one token eight inputs are loaded into the lanes of a vector, one by one, which
// takes 0.80 cycles each where vgatherdps takes 1.35.
#pragma once

#include <bit>
#include <type_traits>

#include "base/simd/avx2.h"
#include "base/with_constant.h"
#include "ops/spmm/lists-inl.h"

namespace tamis {
namespace {

inline constexpr int64_t kBlockFloats = 4096;  // of x
inline constexpr int64_t kBlockStride = kBlockFloats + 16;

template <int T>
inline constexpr int64_t kBlockWords = kBlockFloats / T / 64;

// A place is a column of a block times T, in units of floats that an address scales by itself.
template <int T>
inline constexpr int kUnitFloats = T == 1 ? 1 : 2;
template <int T>
inline constexpr int kPlaceShift = T == 16  ? 3
                                   : T == 8 ? 2
                                   : T == 4 ? 1
                                            : 0;

// ---- the x form

template <int T>
int64_t lists_bytes(const SpmmArgs& a) {
  return ceil_div(a.m, T) * ceil_div(mask_words(a.w.cols), kBlockWords<T>) * kBlockStride * 4;
}

// Columns [column, end) of a block's tokens [token, token + T), to `out`.
template <class X, int T>
TAMIS_INLINE void prepare_columns(const SpmmArgs& a, int64_t token, int64_t column, int64_t end,
                                  float* out) {
  const X* x[T];
  for (int i = 0; i < T; ++i) {
    x[i] = static_cast<const X*>(a.x) + (token + i < a.m ? token + i : a.m - 1) * a.x_stride;
  }
  for (; column + 4 <= end; column += 4, out += 4 * T) {
    if constexpr (T == 1) {
      store_quad(load_quad(x[0] + column), out);
    } else {
      for (int t = 0; t < T; t += 4) {
        Quad q[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) q[i] = load_quad(x[t + i] + column);
        transpose(q);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) store_quad(q[i], out + i * T + t);
      }
    }
  }
  for (; column < end; ++column, out += T) {
    for (int t = 0; t < T; ++t) out[t] = simd::to_f32(x[t][column]);
  }
}

template <class X, int T>
void prepare_lists(const SpmmArgs& a, void* prepared, int part, int parts) {
  const int64_t blocks = ceil_div(mask_words(a.w.cols), kBlockWords<T>);
  const int64_t all = ceil_div(a.m, T) * blocks, columns = kBlockWords<T> * 64;
  for (int64_t i = all * part / parts; i < all * (part + 1) / parts; ++i) {
    float* out = static_cast<float*>(prepared) + i * kBlockStride;
    const int64_t begin = i % blocks * columns;
    const int64_t end = begin + columns < a.w.cols ? begin + columns : a.w.cols;
    prepare_columns<X, T>(a, i / blocks * T, begin, end, out);
    __builtin_memset(out + kBlockFloats, 0, (kBlockStride - kBlockFloats) * sizeof(float));
  }
}

// ---- lists

// Places of a row's weights in a block, then zeros' places; and its weights, as f32 unless T is 1.
template <class W, int T>
struct RowList {
  using Values = std::conditional_t<T == 1, W, float>;
  int64_t n;
  const Values* values;
  uint16_t places[kBlockFloats / T + 32];
  alignas(32) float floats[kBlockFloats / T + 16];  // unless they lie so
  uint8_t last_columns[kBlockFloats / T + 64];  // a copy, where the list would read past the last
};

TAMIS_INLINE void store_places(__m128i v, uint16_t* out) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), v);
}

// Lists `count` words of a row by how many columns are stored of each, and which; returns how many
// places there are. Reads 32 bytes past the columns.
// A word's first kFirst columns are listed at once: more would be stored for nothing, fewer end in
// a wrong guess more often.
template <int T, int kFirst>
TAMIS_INLINE int64_t list_places(const uint8_t* counts, int64_t count, const uint8_t* columns,
                                 uint16_t* out) {
  const __m256i step = _mm256_set1_epi16(64 << kPlaceShift<T>);
  __m256i base = _mm256_setzero_si256();
  int64_t at = 0;
  const auto eight = [&](int64_t from) __attribute__((always_inline)) {
    const __m128i mine =
        _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(columns + from)));
    store_places(_mm_add_epi16(_mm_slli_epi16(mine, kPlaceShift<T>), _mm256_castsi256_si128(base)),
                 out + from);
  };
  const auto sixteen = [&](int64_t from) __attribute__((always_inline)) {
    const __m256i mine =
        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(columns + from)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + from),
                        _mm256_add_epi16(_mm256_slli_epi16(mine, kPlaceShift<T>), base));
  };
  const auto word = [&]() __attribute__((always_inline)) {
    if constexpr (kFirst == 8) eight(at);
    if constexpr (kFirst >= 16) sixteen(at);
    if constexpr (kFirst == 32) sixteen(at + 16);
  };
  const auto next = [&](int64_t n) __attribute__((always_inline)) {
    at += n;
    base = _mm256_add_epi16(base, step);
  };
  const auto whole = [&](int64_t n) __attribute__((always_inline)) {
    for (int64_t from = 0; from < n; from += 8) eight(at + from);
  };
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    uint32_t four;
    __builtin_memcpy(&four, counts + i, 4);
    // A count is 64 at most, so that no sum leaves its byte.
    if (__builtin_expect(((four + 0x01010101u * (127 - kFirst)) & 0x80808080u) != 0, 0)) {
      for (int j = 0; j < 4; ++j) {
        whole(counts[i + j]);
        next(counts[i + j]);
      }
      continue;
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      word();
      next(counts[i + j]);
    }
  }
  for (; i < count; ++i) {
    whole(counts[i]);
    next(counts[i]);
  }
  return at;
}

// For each byte of mask bits the places of its columns, then zeros.
template <int T>
struct BytePlaces {
  alignas(16) uint16_t of[256][8];

  constexpr BytePlaces() : of() {
    for (int bits = 0; bits < 256; ++bits) {
      int n = 0;
      for (int column = 0; column < 8; ++column) {
        if (bits >> column & 1) {
          of[bits][n++] = static_cast<uint16_t>(column << kPlaceShift<T>);
        }
      }
    }
  }
};
template <int T>
constexpr BytePlaces<T> kBytePlaces;

// The same by masks.
template <int T>
TAMIS_INLINE int64_t list_places(const uint64_t* masks, int64_t count, uint16_t* out) {
  const auto* table = reinterpret_cast<const char*>(kBytePlaces<T>.of);
  asm("" : "+r"(table));  // else GCC adds where the table begins to every offset
  const __m128i step = _mm_set1_epi16(8 << kPlaceShift<T>);
  __m128i base = _mm_setzero_si128();
  uint16_t* at = out;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t bits = masks[i];
#pragma GCC unroll 8
    for (int s = 0; s < 8; ++s) {
      const uint64_t row = std::rotr(bits, 8 * s - 4) & uint64_t{0xff} << 4;
      const __m128i mine = _mm_load_si128(reinterpret_cast<const __m128i*>(table + row));
      store_places(_mm_add_epi16(mine, base), at + (s ? simd::popcount(bits << (64 - 8 * s)) : 0));
      base = _mm_add_epi16(base, step);
    }
    at += simd::popcount(bits);
  }
  return at - out;
}

// n weights as f32, where they lie or copied to `floats`, zeros after them.
TAMIS_INLINE const float* list_values(const float* p, int64_t, float*, const float*) {
  return p;
}
template <class W>
TAMIS_INLINE const float* list_values(const W* p, int64_t n, float* floats, const W* end) {
  int64_t i = 0;
  for (; i < n && p + i + simd::kLanes <= end; i += simd::kLanes) {
    simd::store(simd::load(p + i), floats + i);
  }
  for (; i < n; ++i) floats[i] = simd::to_f32(p[i]);
  return floats;
}

// ---- products

// The first n <= 8 of the weights at p, zeros after them.
TAMIS_INLINE simd::F32 first_values(const float* p, int64_t n, const float*) {
  return simd::load(p, static_cast<int>(n));
}
template <class W>
TAMIS_INLINE simd::F32 first_values(const W* p, int64_t n, const W* end) {
  if (p + simd::kLanes > end) return simd::load(p, static_cast<int>(n));
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
  return _mm256_and_ps(simd::load(p), _mm256_castsi256_ps(there));
}

TAMIS_INLINE uint64_t four_places(const uint16_t* p) {
  uint64_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

TAMIS_INLINE __m128 pick4(const uint16_t* places, const float* x) {
  const uint64_t at = four_places(places);
  __m128 v = _mm_load_ss(x + (at & 0xffff));
  v = _mm_insert_ps(v, _mm_load_ss(x + (at >> 16 & 0xffff)), 0x10);
  v = _mm_insert_ps(v, _mm_load_ss(x + (at >> 32 & 0xffff)), 0x20);
  return _mm_insert_ps(v, _mm_load_ss(x + (at >> 48)), 0x30);
}
TAMIS_INLINE simd::F32 pick8(const uint16_t* places, const float* x) {
  return _mm256_set_m128(pick4(places + 4, x), pick4(places, x));
}

// sums[8] += n weights times their inputs.
template <class W>
TAMIS_INLINE void add_inputs(const uint16_t* place, const W* value, int64_t n, const W* end,
                             const float* x, float* sums) {
  simd::F32 sum = _mm256_load_ps(sums);
  for (; n >= 8; n -= 8, place += 8, value += 8) {
    sum = simd::fma(simd::load(value), pick8(place, x), sum);
  }
  sum = simd::fma(first_values(value, n, end), pick8(place, x), sum);
  _mm256_store_ps(sums, sum);
}

// T tokens: a vector of them, or two.
template <int T>
struct Lanes {
  static constexpr int kTokens = 8;
  static constexpr int kVectors = T / 8;
  using F = __m256;
  static TAMIS_INLINE F load(const float* p) { return _mm256_load_ps(p); }
  static TAMIS_INLINE void store(F v, float* p) { _mm256_store_ps(p, v); }
  static TAMIS_INLINE F zero() { return _mm256_setzero_ps(); }
  static TAMIS_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  static TAMIS_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static TAMIS_INLINE F four(__m128 v) { return _mm256_set_m128(v, v); }
  template <int kLane>
  static TAMIS_INLINE F lane(F v) {
    return _mm256_permute_ps(v, 0x55 * kLane);
  }
};
template <>
struct Lanes<4> {
  static constexpr int kTokens = 4;
  static constexpr int kVectors = 1;
  using F = __m128;
  static TAMIS_INLINE F load(const float* p) { return _mm_load_ps(p); }
  static TAMIS_INLINE void store(F v, float* p) { _mm_store_ps(p, v); }
  static TAMIS_INLINE F zero() { return _mm_setzero_ps(); }
  static TAMIS_INLINE F add(F a, F b) { return _mm_add_ps(a, b); }
  static TAMIS_INLINE F fma(F a, F b, F c) { return _mm_fmadd_ps(a, b, c); }
  static TAMIS_INLINE F four(__m128 v) { return v; }
  template <int kLane>
  static TAMIS_INLINE F lane(F v) {
    return _mm_permute_ps(v, 0x55 * kLane);
  }
};

// sums[T] += n weights times their columns of x.
template <int T>
TAMIS_INLINE void add_columns(const uint16_t* place, const float* value, int64_t n, const float* x,
                              float* sums) {
  using L = Lanes<T>;
  constexpr int V = L::kVectors;
  typename L::F sum[4][V];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    sum[0][v] = L::load(sums + v * L::kTokens);
    sum[1][v] = sum[2][v] = sum[3][v] = L::zero();
  }
  const auto add = [&](__m128 values) __attribute__((always_inline)) {
    const uint64_t at = four_places(place);
    const auto four = L::four(values);
    const auto column = [&]<int kLane>(const float* from) __attribute__((always_inline)) {
      const auto weight = L::template lane<kLane>(four);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        sum[kLane][v] = L::fma(weight, L::load(from + v * L::kTokens), sum[kLane][v]);
      }
    };
    column.template operator()<0>(x + (at & 0xffff) * 2);
    column.template operator()<1>(x + (at >> 16 & 0xffff) * 2);
    column.template operator()<2>(x + (at >> 32 & 0xffff) * 2);
    column.template operator()<3>(x + (at >> 48) * 2);
  };
  for (; n >= 4; n -= 4, place += 4, value += 4) add(_mm_loadu_ps(value));
  const __m128i there =
      _mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(n)), _mm_setr_epi32(0, 1, 2, 3));
  add(_mm_maskload_ps(value, there));
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const auto low = L::add(sum[0][v], sum[1][v]), high = L::add(sum[2][v], sum[3][v]);
    L::store(L::add(low, high), sums + v * L::kTokens);
  }
}

// ---- lists-inl.h's L

template <class WType, int T>
struct Lists {
  using W = WType;
  using Row = RowList<W, T>;
  static constexpr int64_t kTokens = T;
  static constexpr int64_t kWords = kBlockWords<T>;
  static constexpr int64_t kStride = T < 8 ? 8 : T;
  static constexpr int64_t kGroupBytes = 128 * 1024;
  static constexpr int64_t kBlockStep = kBlockStride;
  static constexpr int64_t pass_floats(int64_t words) {
    return ceil_div(words, kWords) * kBlockStride;
  }

  // A way for each number of a word's columns to list at once, where these are stored.
  template <class Cell, class Fn>
  static TAMIS_INLINE void with_ways(int64_t per_word, int64_t, const Fn& fn) {
    if constexpr (sizeof(Cell) == 1) {
      with_constant<8, 16, 32>(per_word < 4 ? 8 : per_word < 9 ? 16 : 32, fn);
    } else {
      with_constant<8>(8, fn);
    }
  }
  template <int>
  static TAMIS_INLINE void list(const uint64_t* masks, int64_t count, Row& row) {
    row.n = list_places<T>(masks, count, row.places);
    end_list(row);
  }
  template <int kFirst>
  static TAMIS_INLINE void list(const uint8_t* counts, int64_t count, const uint8_t* columns,
                                const uint8_t* end, Row& row) {
    if (__builtin_expect(end - columns < 64 * count + 32, 0)) {
      const int64_t left = end - columns;
      __builtin_memcpy(row.last_columns, columns,
                       static_cast<size_t>(left < 64 * count ? left : 64 * count));
      columns = row.last_columns;
    }
    row.n = list_places<T, kFirst>(counts, count, columns, row.places);
    end_list(row);
  }
  static TAMIS_INLINE void end_list(Row& row) {
    store_places(_mm_set1_epi16(kBlockFloats / kUnitFloats<T>), row.places + row.n);
  }
  static TAMIS_INLINE void take(const W* p, const W* end, Row& row) {
    if constexpr (T == 1) {
      row.values = p;
    } else {
      row.values = list_values(p, row.n, row.floats, end);
    }
  }
  static TAMIS_INLINE void add(const Row& row, const W* end, const float* x, float* sums) {
    if constexpr (T == 1) {
      add_inputs(row.places, row.values, row.n, end, x, sums);
    } else {
      add_columns<T>(row.places, row.values, row.n, x, sums);
    }
  }
  template <class X>
  static void write(const SpmmArgs& a, const float* sums, int64_t row, int64_t rows,
                    int64_t token) {
    if constexpr (T == 1) {
      write_lanes<X>(a, sums, row, rows, token);
    } else {
      write_squares<Lists, X>(a, sums, row, rows, token);
    }
  }
  // One token: the sum of a row's lanes.
  template <class X>
  static void write_lanes(const SpmmArgs& a, const float* sums, int64_t row, int64_t rows,
                          int64_t token) {
    for (int64_t r = 0; r < rows; r += 8) {
      simd::F32 v[8];
      for (int i = 0; i < 8; ++i) v[i] = _mm256_load_ps(sums + (r + i) * kStride);
      const int there = static_cast<int>(rows - r < 8 ? rows - r : 8);
      const auto* bias = static_cast<const X*>(a.bias);
      const simd::F32 start = bias ? simd::load(bias + row + r, there) : simd::zero();
      simd::store(simd::add(simd::sums(v), start),
                  static_cast<X*>(a.y) + token * a.y_stride + row + r, there);
    }
  }
};

}  // namespace
}  // namespace tamis

#define TAMIS_LISTS_FORMS(x, X)                                                    \
  const SpmmXForm spmm_singles_##x##_avx2 = {lists_bytes<1>, prepare_lists<X, 1>}; \
  const SpmmXForm spmm_quadlists_##x##_avx2 = {                                    \
      .bytes = lists_bytes<4>, .prepare = prepare_lists<X, 4>, .lanes = 4};        \
  const SpmmXForm spmm_octetlists_##x##_avx2 = {                                   \
      .bytes = lists_bytes<8>, .prepare = prepare_lists<X, 8>, .lanes = 8};        \
  const SpmmXForm spmm_lists_##x##_avx2 = {                                        \
      .bytes = lists_bytes<16>, .prepare = prepare_lists<X, 16>, .lanes = 16};
// One token of a mask is as fast without a list.
#define TAMIS_LISTS_KERNELS(w, x, W, X)                  \
  TAMIS_LISTS_KERNEL(csr8, w, x, avx2, singles, W, X, 1) \
  TAMIS_LISTS_FORMATS(w, x, avx2, quadlists, W, X, 4)    \
  TAMIS_LISTS_FORMATS(w, x, avx2, octetlists, W, X, 8)   \
  TAMIS_LISTS_FORMATS(w, x, avx2, lists, W, X, 16)
