// Attention over keys that are a product before they turn: coordinates [tokens, rank] of f32, f16
// or bf16 times basis [rank, d], with dense values. Tile: 16 tokens, whose keys are rebuilt in f32
// (rank * d FMAs each, nearly all of the time), turned and then read as a dense tile's. Rebuilding:
// kRebuilt tokens times two vectors of channels in registers, over kRanks coordinates at a time,
// which lie in f32 in L1 beside a strip of the basis. Needs: d a multiple of 16, rows of contiguous
// elements.   Tail: repeats the last token.
//
// Included after a base/simd/lanes_<isa>.h.
#pragma once

#include "ops/sparse_attention/dense-inl.h"

namespace tamis {
namespace {

inline constexpr int kRebuilt = simd::kLanes == 8 ? 4 : 8;  // half of AVX2's registers are sums
inline constexpr int64_t kRanks = 256;

struct RebuiltTile {
  alignas(64) float keys[kDenseTile][kKvMaxHeadDim];
  alignas(64) float coordinates[kDenseTile][kRanks];
};

// keys[t .. t + kRebuilt)[c ..] += coordinates * basis over `count` rows of the basis.
template <class T, int kVectors>
TAMIS_INLINE void rebuild_at(const T* basis, int64_t d, int64_t count, int64_t t, int64_t c,
                             RebuiltTile* tile) {
  lanes::F32 sum[kRebuilt][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRebuilt; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      sum[i][v] = simd::load(tile->keys[t + i] + c + v * simd::kLanes);
    }
  }
  for (int64_t j = 0; j < count; ++j) {
    lanes::F32 row[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) row[v] = simd::load(basis + j * d + c + v * simd::kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRebuilt; ++i) {
      const lanes::F32 x = lanes::splat(tile->coordinates[t + i][j]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] = simd::fma(x, row[v], sum[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRebuilt; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      lanes::store(sum[i][v], tile->keys[t + i] + c + v * simd::kLanes);
    }
  }
}

// Widens coordinates [first, first + count) of the tile's tokens.
template <class T>
TAMIS_INLINE void widen(const T* const* rows, int64_t first, int64_t count, RebuiltTile* tile) {
  for (int i = 0; i < kDenseTile; ++i) {
    const T* from = rows[i] + first;
    int64_t j = 0;
    for (; j + simd::kLanes <= count; j += simd::kLanes) {
      lanes::store(simd::load(from + j), tile->coordinates[i] + j);
    }
    for (; j < count; ++j) tile->coordinates[i][j] = simd::to_f32(from[j]);
  }
}

// Turns the pairs of one key to its place.
TAMIS_INLINE void turn(const KvLowRank& l, int64_t token, float* key) {
  const int64_t pairs = l.pairs;
  const float* fine = l.turns + token % kTurnFine * 2 * pairs;
  const float* coarse = l.turns + (kTurnFine + token / kTurnFine) * 2 * pairs;
  int64_t c = 0;
  for (; c + simd::kLanes <= pairs; c += simd::kLanes) {
    const lanes::F32 cos1 = simd::load(fine + c), sin1 = simd::load(fine + pairs + c);
    const lanes::F32 cos2 = simd::load(coarse + c), sin2 = simd::load(coarse + pairs + c);
    const lanes::F32 cos = lanes::sub(lanes::mul(cos1, cos2), lanes::mul(sin1, sin2));
    const lanes::F32 sin = simd::fma(sin1, cos2, lanes::mul(cos1, sin2));
    const lanes::F32 a = simd::load(key + c), b = simd::load(key + pairs + c);
    lanes::store(lanes::sub(lanes::mul(a, cos), lanes::mul(b, sin)), key + c);
    lanes::store(simd::fma(b, cos, lanes::mul(a, sin)), key + pairs + c);
  }
  for (; c < pairs; ++c) {
    const float cos = fine[c] * coarse[c] - fine[pairs + c] * coarse[pairs + c];
    const float sin = fine[pairs + c] * coarse[c] + fine[c] * coarse[pairs + c];
    const float a = key[c], b = key[pairs + c];
    key[c] = a * cos - b * sin;
    key[pairs + c] = b * cos + a * sin;
  }
}

// The keys of a tile. token(i): the id of its i-th token, the last one's past the end.
template <class T, class Token>
TAMIS_INLINE void rebuild(const AttentionPart& a, const T* const* rows, const Token& token,
                          RebuiltTile* tile) {
  const KvLowRank& l = a.segment->low_rank;
  const int64_t d = a.head_dim;
  for (int i = 0; i < kDenseTile; ++i) {
    for (int64_t c = 0; c < d; c += simd::kLanes) lanes::store(simd::zero(), tile->keys[i] + c);
  }
  for (int64_t j = 0; j < l.rank; j += kRanks) {
    const int64_t count = l.rank - j < kRanks ? l.rank - j : kRanks;
    const T* basis = static_cast<const T*>(a.basis) + j * d;
    widen(rows, j, count, tile);
    int64_t c = 0;
    for (; c + 2 * simd::kLanes <= d; c += 2 * simd::kLanes) {
      for (int t = 0; t < kDenseTile; t += kRebuilt) rebuild_at<T, 2>(basis, d, count, t, c, tile);
    }
    for (; c < d; c += simd::kLanes) {
      for (int t = 0; t < kDenseTile; t += kRebuilt) rebuild_at<T, 1>(basis, d, count, t, c, tile);
    }
  }
  for (int i = 0; i < kDenseTile && l.pairs > 0; ++i) turn(l, token(i), tile->keys[i]);
}

template <class T, int R>
void attend_lowrank(const AttentionPart& a, AttentionState* s) {
  const typename FloatUnit<float>::Query query(a.q, R, a.head_dim);
  start(s);
  Tile tile;
  RebuiltTile rebuilt;
  const float* keys[kDenseTile];
  for (int i = 0; i < kDenseTile; ++i) keys[i] = rebuilt.keys[i];
  TileRows<T> tiles[2];
  TileRows<T>*rows = &tiles[0], *next = &tiles[1];
  rows->find(a, a.unit_begin);
  for (int64_t first = a.unit_begin; first < a.unit_end; first += kDenseTile) {
    const int64_t end = first + kDenseTile;
    next->find(a, end);
    const auto id = [&](int64_t unit) { return a.index ? int64_t{a.index[unit]} : unit; };
    rebuild(
        a, rows->keys,
        [&](int64_t i) { return id(first + i < a.unit_end ? first + i : a.unit_end - 1); },
        &rebuilt);
    for (int64_t t = 0; t < kDenseTile; t += kTokens) {
      FloatUnit<float>::template scores<R>(query, keys, keys, t, &tile);
    }
    const bool whole = all_count(a, first, kDenseTile);
    const auto token = [&](int64_t i) {
      return first + i < a.unit_end ? id(first + i) : int64_t{-1};
    };
    softmax<R>(a, kDenseTile, whole, &tile, s, token, [](int, float) {});
    FloatUnit<T>::template weigh<R>(rows->values, next->values, a.head_dim, tile, s);
    TileRows<T>* done = rows;
    rows = next;
    next = done;
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_LOWRANK_ATTENTION(dtype, T, level)                                                   \
  void sparse_attention_lowrank_##dtype##_f32_##level(const AttentionPart& a, AttentionState* s) { \
    with_rows(a.rows, [&](auto rows) { attend_lowrank<T, decltype(rows)::kCount>(a, s); });        \
  }
