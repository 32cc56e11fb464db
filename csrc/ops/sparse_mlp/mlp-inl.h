// A gated MLP neuron by neuron: gate, activation and threshold for a chunk of neurons, then the
// rows of up and down of those that count. Tile: 64 neurons; their activations and lists stay in
// L1. Dots take kRows rows at a time, so that x is loaded once for all of them; each load is paired
// with a prefetch of the same place in the rows that follow, which for up and down only the list
// knows. Needs: rows of k (gate, up) and d (down) elements.   Tail: rows of a group past the end
// repeat the last one and are not used; columns by partial vectors. Gate is read whole, up and down
// for a share r of the neurons: 3 / (1 + 2 r) times less than all.
//
// Included after a base/simd/lanes_<isa>.h.
#pragma once

#include "ops/sparse_input/row_sum-inl.h"
#include "ops/sparse_mlp/sparse_mlp.h"
#include "ops/spmm/activate-inl.h"

namespace tamis {
namespace {

inline constexpr int kChunk = 64;  // a multiple of every simd::kLanes

// Rows that share one load of x.
template <int M>
inline constexpr int kDotRows = M == 1 ? 4 : 2;

// out[r * M + t] = w[r] . x[t] for R rows.
template <int R, int M, class T>
TAMIS_INLINE void dots(const T* const* w, const T* const* next, const float* x, int64_t k,
                       float* out) {
  lanes::F32 sum[R][M];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) sum[r][t] = simd::zero();
  }
  constexpr int kStep = simd::kLanes > Lines<T>::kElements ? simd::kLanes : Lines<T>::kElements;
  int64_t c = 0;
  for (; c + kStep <= k; c += kStep) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) __builtin_prefetch(next[r] + c, 0, 2);
#pragma GCC unroll 4
    for (int v = 0; v < kStep; v += simd::kLanes) {
      lanes::F32 token[M];
#pragma GCC unroll 4
      for (int t = 0; t < M; ++t) token[t] = simd::load(x + t * k + c + v);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const lanes::F32 row = simd::load(w[r] + c + v);
#pragma GCC unroll 4
        for (int t = 0; t < M; ++t) sum[r][t] = simd::fma(row, token[t], sum[r][t]);
      }
    }
  }
  for (; c < k; c += simd::kLanes) {
    const int n = static_cast<int>(k - c < simd::kLanes ? k - c : simd::kLanes);
    for (int r = 0; r < R; ++r) {
      const lanes::F32 row = simd::load(w[r] + c, n);
      for (int t = 0; t < M; ++t) {
        sum[r][t] = simd::fma(row, simd::load(x + t * k + c, n), sum[r][t]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < M; ++t) out[r * M + t] = simd::sum(sum[r][t]);
  }
}

// out[i * M + t] = w[id(i)] . x[t] for i < count.
template <int M, class T, class Id>
TAMIS_INLINE void list_dots(const T* w, int64_t count, const Id& id, const float* x, int64_t k,
                            float* out) {
  constexpr int R = kDotRows<M>;
  const T *rows[R], *next[R];
  for (int64_t i = 0; i < count; i += R) {
    for (int r = 0; r < R; ++r) {
      rows[r] = w + id(i + r < count ? i + r : count - 1) * k;
      next[r] = w + id(i + R + r < count ? i + R + r : count - 1) * k;
    }
    float sums[R * M];
    dots<R, M, T>(rows, next, x, k, sums);
    const int64_t here = count - i < R ? count - i : R;
    for (int64_t j = 0; j < here * M; ++j) out[i * M + j] = sums[j];
  }
}

template <Activation kActivation>
TAMIS_INLINE void activate_chunk(float* a, int64_t count) {
  for (int64_t i = 0; i < count; i += simd::kLanes) {
    lanes::store(activate<kActivation>(simd::load(a + i)), a + i);
  }
}

// count: rounded up to whole vectors by the caller's buffer.
TAMIS_INLINE void activate_all(Activation f, float* a, int64_t count) {
  switch (f) {
    case Activation::none:
      return;
    case Activation::relu:
      return activate_chunk<Activation::relu>(a, count);
    case Activation::gelu:
      return activate_chunk<Activation::gelu>(a, count);
    case Activation::gelu_tanh:
      return activate_chunk<Activation::gelu_tanh>(a, count);
    case Activation::silu:
      return activate_chunk<Activation::silu>(a, count);
  }
}

template <int M, class T>
void mlp(const MlpPart& p) {
  const SparseMlpArgs& a = *p.args;
  const T* gate = static_cast<const T*>(a.gate);
  const T* up = static_cast<const T*>(a.up);
  for (int64_t i = 0; i < M * a.d; ++i) p.sum[i] = 0.0f;
  int64_t kept = 0;
  for (int64_t first = p.begin; first < p.end; first += kChunk) {
    const int64_t count = p.end - first < kChunk ? p.end - first : kChunk;
    alignas(64) float act[kChunk * M] = {};
    alignas(64) float factor[kChunk * M];
    int32_t ids[kChunk];
    list_dots<M>(gate, count, [&](int64_t i) { return first + i; }, p.x, a.k, act);
    activate_all(a.activation, act, count * M);
    int64_t listed = 0;
    for (int64_t i = 0; i < count; ++i) {
      int here = 0;
      for (int t = 0; t < M; ++t) {
        const float v = act[i * M + t];
        const bool counts = !(__builtin_fabsf(v) < a.threshold[first + i]);
        factor[listed * M + t] = counts ? v : 0.0f;
        here += counts;
      }
      ids[listed] = static_cast<int32_t>(first + i);
      listed += here > 0;
      kept += here;
    }
    if (listed == 0) continue;
    list_dots<M>(up, listed, [&](int64_t i) { return int64_t{ids[i]}; }, p.x, a.k, act);
    for (int64_t i = 0; i < listed * M; ++i) {
      factor[i] = factor[i] == 0.0f ? 0.0f : factor[i] * act[i];
    }
    row_sum<T>({.rows = {.count = listed, .ids = ids, .factors = factor},
                .tokens = M,
                .w = a.down,
                .stride = a.d,
                .sum = p.sum,
                .sum_stride = a.d,
                .begin = 0,
                .end = a.d});
  }
  *p.kept = kept;
}

template <class T>
TAMIS_INLINE void mlp_part(const MlpPart& p) {
  switch (p.tokens) {
    case 1:
      return mlp<1, T>(p);
    case 2:
      return mlp<2, T>(p);
    case 3:
      return mlp<3, T>(p);
    default:
      return mlp<4, T>(p);
  }
}

}  // namespace
}  // namespace tamis
