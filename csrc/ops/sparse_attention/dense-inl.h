// Attention over dense keys and values [tokens, d] of f32, f16 or bf16.
// Tile: 16 tokens. Scores: channels in lanes, a few tokens times all rows at once, then transposed
// sums. Values: two vectors of channels times all rows, over the tile's tokens, which are in L1.
// Every load is paired with a prefetch of the same place in the next tile: the hardware follows
// neither the strips of values nor the turns between two streams (7 against 17 GB/s on Zen 4). Into
// L2: two tiles fill L1 (8 GB/s).   Tried: tiles of 32 tokens, 13 to 17 GB/s.
// Needs: d a multiple of 16, rows of d contiguous elements.   Tail: repeats the last token, whose
// copies do not count.
//
// Included after a base/simd/lanes_<isa>.h. Unit: how 16-bit or f32 elements are multiplied; it may
// hold the weighted sums in another order until finish().
#pragma once

#include "ops/sparse_attention/softmax-inl.h"

namespace tamis {
namespace {

inline constexpr int kDenseTile = 16;
// Rows of keys that share one pass over q: with 4 rows of q, half of the registers hold sums.
inline constexpr int kTokens = simd::kLanes == 16 ? 4 : simd::kLanes == 8 ? 2 : 1;

// Products in f32: every dtype, every ISA.
template <class T>
struct FloatUnit {
  using Element = T;
  struct Query {
    const float* q;
    int64_t d;
    TAMIS_INLINE Query(const float* source, int64_t /*rows*/, int64_t dim) : q(source), d(dim) {}
  };

  // p[r][t] = q[r] . rows[t] for kTokens tokens from t on.
  template <int R>
  static TAMIS_INLINE void scores(const Query& query, const T* const* rows, const T* const* next,
                                  int64_t t, Tile* tile) {
    lanes::F32 sum[R][kTokens];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) sum[r][i] = simd::zero();
    }
    for (int64_t c = 0; c < query.d; c += simd::kLanes) {
      lanes::F32 key[kTokens];
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) {
        key[i] = simd::load(rows[t + i] + c);
        prefetch(next[t + i] + c);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const lanes::F32 q = simd::load(query.q + r * query.d + c);
#pragma GCC unroll 4
        for (int i = 0; i < kTokens; ++i) sum[r][i] = simd::fma(q, key[i], sum[r][i]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) lanes::store_sums(sum[r], tile->p[r] + t);
  }

  // weighted[r][c ...] += sum_t p[r][t] * rows[t][c ...] for all channels.
  template <int R>
  static TAMIS_INLINE void weigh(const T* const* rows, const T* const* next, int64_t d,
                                 const Tile& tile, AttentionState* s) {
    int64_t c = 0;
    for (; c + 2 * simd::kLanes <= d; c += 2 * simd::kLanes) weigh_at<R, 2>(rows, next, c, tile, s);
    for (; c < d; c += simd::kLanes) weigh_at<R, 1>(rows, next, c, tile, s);
  }

  template <int R, int kVectors>
  static TAMIS_INLINE void weigh_at(const T* const* rows, const T* const* next, int64_t c,
                                    const Tile& tile, AttentionState* s) {
    lanes::F32 sum[R][kVectors];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = simd::load(s->weighted[r] + c + v * simd::kLanes);
      }
    }
    for (int t = 0; t < kDenseTile; ++t) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const lanes::F32 value = simd::load(rows[t] + c + v * simd::kLanes);
        prefetch(next[t] + c + v * simd::kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          sum[r][v] = simd::fma(lanes::splat(tile.p[r][t]), value, sum[r][v]);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        lanes::store(sum[r][v], s->weighted[r] + c + v * simd::kLanes);
      }
    }
  }
};

// Where the tokens of a tile are.
template <class T>
struct TileRows {
  const T* keys[kDenseTile];
  const T* values[kDenseTile];

  // Units from `first` on, the last one repeated.
  TAMIS_INLINE void find(const AttentionPart& a, int64_t first) {
    for (int64_t i = 0; i < kDenseTile; ++i) {
      const int64_t unit = first + i < a.unit_end ? first + i : a.unit_end - 1;
      const int64_t token = a.index ? int64_t{a.index[unit]} : unit;
      keys[i] = static_cast<const T*>(a.keys) + token * a.segment->key_token_stride;
      values[i] = static_cast<const T*>(a.values) + token * a.segment->value_token_stride;
    }
  }
};

template <class Unit, int R>
void attend_dense(const AttentionPart& a, AttentionState* s) {
  using T = typename Unit::Element;
  const typename Unit::Query query(a.q, R, a.head_dim);
  start(s);
  Tile tile;
  TileRows<T> tiles[2];
  TileRows<T>*rows = &tiles[0], *next = &tiles[1];
  rows->find(a, a.unit_begin);
  for (int64_t first = a.unit_begin; first < a.unit_end; first += kDenseTile) {
    const int64_t end = first + kDenseTile;
    next->find(a, end);
    for (int64_t t = 0; t < kDenseTile; t += kTokens) {
      Unit::template scores<R>(query, rows->keys, next->keys, t, &tile);
    }
    const bool whole = all_count(a, first, kDenseTile);
    const auto token = [&](int64_t i) {
      if (first + i >= a.unit_end) return int64_t{-1};
      return a.index ? int64_t{a.index[first + i]} : first + i;
    };
    softmax<R>(a, kDenseTile, whole, &tile, s, token, [](int, float) {});
    Unit::template weigh<R>(rows->values, next->values, a.head_dim, tile, s);
    TileRows<T>* done = rows;
    rows = next;
    next = done;
  }
  if constexpr (requires { Unit::template finish<R>(a.head_dim, s); }) {
    Unit::template finish<R>(a.head_dim, s);
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_DENSE_ATTENTION(storage, Unit, q, level)                                         \
  void sparse_attention_##storage##_##q##_##level(const AttentionPart& a, AttentionState* s) { \
    with_rows(a.rows, [&](auto rows) { attend_dense<Unit, decltype(rows)::kCount>(a, s); });   \
  }
