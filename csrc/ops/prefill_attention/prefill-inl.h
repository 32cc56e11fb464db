// Attention of up to kPrefillRows queries over tokens of f32, f16 or bf16 keys and values.
//   s[t,i] = scale * k[t] . q[i];  o[i] = sum_t exp(s[t,i] - max_t) v[t] / sum_t
// Tile: 64 tokens, widened to f32 once for all queries, times kWidth queries. Queries are lanes of
// the scores: their softmax needs no sum across lanes, and neither keys nor values are transposed.
// Both products are kBroadcasts scalars times two vectors, 16 chains with 32 registers, 8 with 16.
// Floor: 4 d operations a query and token, d / 8 FMAs of 16 lanes; exp takes a tenth of that at
// d = 128.
// Needs: d a multiple of 16, rows of d contiguous elements.   Tail: tokens past the last are zeros
// that no query sees; queries past the last are zeros that are not stored.
//
// Included after a base/simd/lanes_<isa>.h.
#pragma once

#include "ops/prefill_attention/prefill_attention.h"

namespace tamis {
namespace {

inline constexpr int kLanes = simd::kLanes;
inline constexpr int kWidth = 2 * kLanes;                                   // queries of a pass
inline constexpr int kBroadcasts = kLanes == 16 ? 8 : kLanes == 8 ? 4 : 2;  // divides kWidth
// Below every score: exp of -inf or of a difference to it is 0, and nothing is NaN.
inline constexpr float kLowest = -0x1p100f;
inline constexpr float kHidden = -__builtin_inff();

// c[i][0 .. n) (+)= sum_k a[k * a_step + i * a_row] * b[k * b_row ...], n one or two vectors.
struct Product {
  const float* a;
  int64_t a_row, a_step;
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row, depth;
};

template <int kVectors, bool kAdds>
TAMIS_INLINE void multiply(const Product& p) {
  lanes::F32 sum[kBroadcasts][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kBroadcasts; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      sum[i][v] = kAdds ? simd::load(p.c + i * p.c_row + v * kLanes) : simd::zero();
    }
  }
  for (int64_t k = 0; k < p.depth; ++k) {
    lanes::F32 b[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) b[v] = simd::load(p.b + k * p.b_row + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kBroadcasts; ++i) {
      const lanes::F32 a = lanes::splat(p.a[k * p.a_step + i * p.a_row]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] = simd::fma(a, b[v], sum[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kBroadcasts; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) lanes::store(sum[i][v], p.c + i * p.c_row + v * kLanes);
  }
}

// What PrefillPart::memory holds. Rows of keys, values and outputs are `row` floats apart: no power
// of two, so that columns of them do not share a set of L1.
struct PrefillMemory {
  int64_t d, row;
  float* queries;        // [rows / kWidth, d, kWidth], scaled
  float* outputs;        // [rows, row]
  float *keys, *values;  // [kPrefillKeys, row]
  float* scores;         // [kPrefillKeys, kWidth]
  float *largest, *sum;  // [rows]
  float* position;       // [rows]

  TAMIS_INLINE PrefillMemory(const PrefillPart& a, int64_t rows)
      : d(a.head_dim), row(a.head_dim + 16) {
    queries = a.memory;
    outputs = queries + rows * d;
    keys = outputs + rows * row;
    values = keys + kPrefillKeys * row;
    scores = values + kPrefillKeys * row;
    largest = scores + kPrefillKeys * kWidth;
    sum = largest + rows;
    position = sum + rows;
  }
};

template <class T>
TAMIS_INLINE void load_query(const void* from, float scale, int64_t d, float* to) {
  const T* q = static_cast<const T*>(from);
  for (int64_t c = 0; c < d; ++c) to[c * kWidth] = scale * simd::to_f32(q[c]);
}

TAMIS_INLINE void start(const PrefillPart& a, int64_t rows, const PrefillMemory& m) {
  for (int64_t r = 0; r < rows; ++r) {
    float* to = m.queries + r / kWidth * kWidth * m.d + r % kWidth;
    if (r >= a.rows) {
      for (int64_t c = 0; c < m.d; ++c) to[c * kWidth] = 0.0f;
    } else if (a.q_dtype == DType::f16) {
      load_query<F16>(a.q[r], a.scale, m.d, to);
    } else if (a.q_dtype == DType::bf16) {
      load_query<BF16>(a.q[r], a.scale, m.d, to);
    } else {
      load_query<float>(a.q[r], a.scale, m.d, to);
    }
    m.largest[r] = kLowest;
    m.sum[r] = 0.0f;
    m.position[r] = static_cast<float>(a.position[r < a.rows ? r : a.rows - 1]);
    for (int64_t c = 0; c < m.row; ++c) m.outputs[r * m.row + c] = 0.0f;
  }
}

// Rows of the tile's tokens as f32, zeros after the last.
template <class T>
TAMIS_INLINE void widen(const void* source, int64_t stride, const int32_t* tokens, int64_t count,
                        int64_t d, float* to, int64_t row) {
  for (int64_t t = 0; t < kPrefillKeys; ++t) {
    if (t < count) {
      const T* from = static_cast<const T*>(source) + int64_t{tokens[t]} * stride;
      for (int64_t c = 0; c < d; c += kLanes) {
        lanes::store(simd::load(from + c), to + t * row + c);
      }
    } else {
      for (int64_t c = 0; c < d; c += kLanes) lanes::store(simd::zero(), to + t * row + c);
    }
  }
}

TAMIS_INLINE void widen(const PrefillPart& a, const void* source, int64_t stride, int64_t first,
                        int64_t count, float* to, int64_t row) {
  const int32_t* tokens = a.tokens + first;
  switch (a.kv_dtype) {
    case DType::f16:
      return widen<F16>(source, stride, tokens, count, a.head_dim, to, row);
    case DType::bf16:
      return widen<BF16>(source, stride, tokens, count, a.head_dim, to, row);
    default:
      return widen<float>(source, stride, tokens, count, a.head_dim, to, row);
  }
}

TAMIS_INLINE lanes::F32 cap(lanes::F32 score, float softcap) {  // softcap * tanh(score / softcap)
  const lanes::F32 x = lanes::mul(score, lanes::splat(1.0f / softcap));
  const lanes::F32 e = lanes::exp(lanes::mul(lanes::magnitude(x), lanes::splat(-2.0f)));
  const lanes::F32 one = lanes::splat(1.0f);
  const lanes::F32 tanh = lanes::div(lanes::sub(one, e), simd::add(one, e));
  return lanes::mul(lanes::with_sign(tanh, score), lanes::splat(softcap));
}

// kHidden for queries that do not see token t. Positions are exact in f32: below 2^24.
TAMIS_INLINE lanes::F32 hide(const PrefillPart& a, lanes::F32 score, lanes::F32 position,
                             int32_t token) {
  const lanes::F32 hidden = lanes::splat(kHidden), t = lanes::splat(static_cast<float>(token));
  if (a.causal) score = lanes::where_negative(lanes::sub(position, t), hidden, score);
  if (a.window > 0 && token >= a.sink) {  // t > position - window
    const lanes::F32 after = lanes::splat(static_cast<float>(token + a.window - 1));
    score = lanes::where_negative(lanes::sub(after, position), hidden, score);
  }
  return score;
}

// Scores of `count` tokens of kWidth queries from `r` on to weights; outputs shrink where a larger
// score turns up.
TAMIS_INLINE void softmax(const PrefillPart& a, const PrefillMemory& m, int64_t r,
                          const int32_t* tokens, int64_t count, bool whole) {
#pragma GCC unroll 2
  for (int v = 0; v < kWidth; v += kLanes) {
    float* s = m.scores + v;
    const lanes::F32 before = simd::load(m.largest + r + v);
    const lanes::F32 position = simd::load(m.position + r + v);
    lanes::F32 largest = before;
    if (whole && a.softcap <= 0.0f) {
      for (int64_t t = 0; t < count; ++t) largest = lanes::max(largest, simd::load(s + t * kWidth));
    } else {
      for (int64_t t = 0; t < count; ++t) {
        lanes::F32 score = simd::load(s + t * kWidth);
        if (a.softcap > 0.0f) score = cap(score, a.softcap);
        if (!whole) score = hide(a, score, position, tokens[t]);
        lanes::store(score, s + t * kWidth);
        largest = lanes::max(largest, score);
      }
    }
    lanes::F32 sum = simd::load(m.sum + r + v);
    if (lanes::above(largest, before) != 0) {
      alignas(64) float factor[kLanes];
      const lanes::F32 f = lanes::exp(lanes::sub(before, largest));
      lanes::store(f, factor);
      lanes::store(largest, m.largest + r + v);
      sum = lanes::mul(sum, f);
      for (int i = 0; i < kLanes; ++i) {
        if (factor[i] == 1.0f) continue;
        float* out = m.outputs + (r + v + i) * m.row;
        for (int64_t c = 0; c < m.d; c += kLanes) {
          lanes::store(lanes::mul(simd::load(out + c), lanes::splat(factor[i])), out + c);
        }
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      const lanes::F32 p = lanes::exp(lanes::sub(simd::load(s + t * kWidth), largest));
      lanes::store(p, s + t * kWidth);
      sum = simd::add(sum, p);
    }
    lanes::store(sum, m.sum + r + v);
  }
}

// Tokens [first, first + count) of the list for queries [r, r + kWidth).
TAMIS_INLINE void attend(const PrefillPart& a, const PrefillMemory& m, int64_t r, int64_t first,
                         int64_t count, bool whole) {
  const int64_t padded = (count + kBroadcasts - 1) / kBroadcasts * kBroadcasts;
  for (int64_t t = 0; t < padded; t += kBroadcasts) {
    multiply<2, false>({.a = m.keys + t * m.row,
                        .a_row = m.row,
                        .a_step = 1,
                        .b = m.queries + r * m.d,
                        .b_row = kWidth,
                        .c = m.scores + t * kWidth,
                        .c_row = kWidth,
                        .depth = m.d});
  }
  softmax(a, m, r, a.tokens + first, count, whole);
  for (int i = 0; i < kWidth; i += kBroadcasts) {
    Product p{.a = m.scores + i,
              .a_row = 1,
              .a_step = kWidth,
              .b = m.values,
              .b_row = m.row,
              .c = m.outputs + (r + i) * m.row,
              .c_row = m.row,
              .depth = count};
    int64_t c = 0;
    for (; c + kWidth <= m.d; c += kWidth, p.b += kWidth, p.c += kWidth) multiply<2, true>(p);
    for (; c < m.d; c += kLanes, p.b += kLanes, p.c += kLanes) multiply<1, true>(p);
  }
}

template <class T>
TAMIS_INLINE void store_row(const float* from, float factor, int64_t d, void* to) {
  for (int64_t c = 0; c < d; c += kLanes) {
    const lanes::F32 x = lanes::mul(simd::load(from + c), lanes::splat(factor));
    simd::store(x, static_cast<T*>(to) + c, kLanes);
  }
}

TAMIS_INLINE void finish(const PrefillPart& a, const PrefillMemory& m) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const float factor = m.sum[r] > 0.0f ? 1.0f / m.sum[r] : 0.0f;
    const float* from = m.outputs + r * m.row;
    if (a.q_dtype == DType::f16) {
      store_row<F16>(from, factor, m.d, a.out[r]);
    } else if (a.q_dtype == DType::bf16) {
      store_row<BF16>(from, factor, m.d, a.out[r]);
    } else {
      store_row<float>(from, factor, m.d, a.out[r]);
    }
    if (a.lse) *a.lse[r] = m.sum[r] > 0.0f ? m.largest[r] + __builtin_logf(m.sum[r]) : kHidden;
  }
}

// Smallest and largest position of kWidth queries.
struct Reach {
  int64_t low, high;
  TAMIS_INLINE Reach(const PrefillPart& a, int64_t r) : low(INT64_MAX), high(INT64_MIN) {
    for (int64_t i = r; i < r + kWidth && i < a.rows; ++i) {
      low = a.position[i] < low ? a.position[i] : low;
      high = a.position[i] > high ? a.position[i] : high;
    }
  }
};

void run_prefill(const PrefillPart& a) {
  const int64_t rows = (a.rows + kWidth - 1) / kWidth * kWidth;
  const PrefillMemory m(a, rows);
  start(a, rows, m);
  for (int64_t first = 0; first < a.count; first += kPrefillKeys) {
    const int64_t count = a.count - first < kPrefillKeys ? a.count - first : kPrefillKeys;
    widen(a, a.keys, a.key_stride, first, count, m.keys, m.row);
    widen(a, a.values, a.value_stride, first, count, m.values, m.row);
    const int64_t lowest = a.tokens[first], highest = a.tokens[first + count - 1];
    for (int64_t r = 0; r < rows; r += kWidth) {
      const Reach reach(a, r);
      if (a.causal && lowest > reach.high) continue;
      if (a.window > 0 && lowest >= a.sink && highest <= reach.low - a.window) continue;
      const bool past = !a.causal || highest <= reach.low;
      const bool inside = a.window == 0 || highest < a.sink || lowest > reach.high - a.window;
      attend(a, m, r, first, count, past && inside);
    }
  }
  finish(a, m);
}

}  // namespace
}  // namespace tamis

#define TAMIS_PREFILL_KERNEL(level)                      \
  namespace tamis {                                      \
  void prefill_attention_##level(const PrefillPart& a) { \
    run_prefill(a);                                      \
  }                                                      \
  }
