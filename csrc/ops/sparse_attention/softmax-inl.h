// The online softmax that dense and packed kernels share: scores of one tile of tokens become
// exp(score - largest), and what was accumulated before shrinks when a larger score turns up.
//
// Included after a base/simd/lanes_<isa>.h.
#pragma once

#include "ops/sparse_attention/sparse_attention.h"

namespace tamis {
namespace {

inline constexpr float kNever = -__builtin_inff();

// Scores, then weights, of a tile's tokens.
template <int kTokens>
struct TileOf {
  alignas(64) float p[kMaxRows][kTokens];
};
using Tile = TileOf<kKvMaxTokens>;

// Into L2: what a tile or page needs next would push what it needs now out of L1.
TAMIS_INLINE void prefetch(const void* p) {
  __builtin_prefetch(p, 0, 2);
}

TAMIS_INLINE void start(AttentionState* s) {
  for (int r = 0; r < kMaxRows; ++r) {
    s->largest[r] = kNever;
    s->sum[r] = 0.0f;
    for (int c = 0; c < kKvMaxHeadDim; ++c) s->weighted[r][c] = 0.0f;
  }
}

TAMIS_INLINE lanes::F32 cap(lanes::F32 score, float softcap) {  // softcap * tanh(score / softcap)
  const lanes::F32 x = lanes::mul(score, lanes::splat(1.0f / softcap));
  const lanes::F32 e = lanes::exp(lanes::mul(lanes::magnitude(x), lanes::splat(-2.0f)));
  const lanes::F32 one = lanes::splat(1.0f);
  const lanes::F32 tanh = lanes::div(lanes::sub(one, e), simd::add(one, e));
  return lanes::mul(lanes::with_sign(tanh, score), lanes::splat(softcap));
}

// Whether `slots` units of one token each, from the list's place `first` on, all count and have no
// bias.
TAMIS_INLINE bool all_count(const AttentionPart& a, int64_t first, int64_t slots) {
  if (a.bias || first + slots > a.unit_end) return false;
  if (a.begin <= 0 && a.end >= a.segment->tokens) return true;
  return !a.index && first >= a.begin && first + slots <= a.end;
}

// Adds the biases and drops tokens that do not count. token(i): the id of the tile's i-th token, or
// a negative number past the last.
template <int R, class AnyTile, class Token>
TAMIS_INLINE void adjust(const AttentionPart& a, int64_t slots, AnyTile* tile, const Token& token) {
  for (int64_t i = 0; i < slots; ++i) {
    const int64_t id = token(i);
    const bool counts = id >= a.begin && id < a.end;
    for (int r = 0; r < R; ++r) {
      if (!counts) {
        tile->p[r][i] = kNever;
      } else if (a.bias) {
        tile->p[r][i] += a.bias[id];
      }
    }
  }
}

// Makes `largest` that of row r if it exceeds it: what was accumulated before shrinks.
template <class Rescale>
TAMIS_INLINE void raise(const AttentionPart& a, int r, float largest, AttentionState* s,
                        const Rescale& rescale) {
  if (largest <= s->largest[r]) return;
  if (s->largest[r] > kNever) {  // else all that shrinks is zero
    alignas(64) float factor[simd::kLanes];
    lanes::store(lanes::exp(lanes::splat(s->largest[r] - largest)), factor);
    s->sum[r] *= factor[0];
    for (int64_t c = 0; c < a.head_dim; c += simd::kLanes) {
      float* at = s->weighted[r] + c;
      lanes::store(lanes::mul(simd::load(at), lanes::splat(factor[0])), at);
    }
    rescale(r, factor[0]);
  }
  s->largest[r] = largest;
}

// Scores to weights for `slots` tokens, a multiple of the lanes. `whole`: all count and none has a
// bias. rescale(r, factor): multiplies what the kernel itself holds of row r.
template <int R, class AnyTile, class Token, class Rescale>
TAMIS_INLINE void softmax(const AttentionPart& a, int64_t slots, bool whole, AnyTile* tile,
                          AttentionState* s, const Token& token, const Rescale& rescale) {
  for (int r = 0; r < R; ++r) {
    for (int64_t i = 0; i < slots; i += simd::kLanes) {
      lanes::F32 score = lanes::mul(simd::load(tile->p[r] + i), lanes::splat(a.scale));
      if (a.softcap > 0.0f) score = cap(score, a.softcap);
      lanes::store(score, tile->p[r] + i);
    }
  }
  if (!whole) adjust<R>(a, slots, tile, token);
  for (int r = 0; r < R; ++r) {
    lanes::F32 most = simd::load(tile->p[r]);
    for (int64_t i = simd::kLanes; i < slots; i += simd::kLanes) {
      most = lanes::max(most, simd::load(tile->p[r] + i));
    }
    const float largest = lanes::max_of(most);
    raise(a, r, largest, s, rescale);
    // While no token counts, largest is -inf: subtracting 0 instead leaves weights of 0.
    const lanes::F32 shift = lanes::splat(s->largest[r] == kNever ? 0.0f : s->largest[r]);
    lanes::F32 sum = simd::zero();
    for (int64_t i = 0; i < slots; i += simd::kLanes) {
      const lanes::F32 weight = lanes::exp(lanes::sub(simd::load(tile->p[r] + i), shift));
      lanes::store(weight, tile->p[r] + i);
      sum = simd::add(sum, weight);
    }
    s->sum[r] += simd::sum(sum);
  }
}

// Calls run(std::integral_constant-like tag with the number of rows).
template <int N>
struct Rows {
  static constexpr int kCount = N;
};
template <class Run>
TAMIS_INLINE void with_rows(int64_t rows, const Run& run) {
  switch (rows) {
    case 1:
      return run(Rows<1>{});
    case 2:
      return run(Rows<2>{});
    case 3:
      return run(Rows<3>{});
    default:
      return run(Rows<kMaxRows>{});
  }
}

}  // namespace
}  // namespace tamis
