// Attention over kv_page records, which are never unpacked: a channel's scale folds into q and a
// token's into its weight, so the inner products see bare codes.
//   score[t]  = sum_c (q[c] * scale[c]) * code[t,c]  +  sum_c q[c] * min[c]
//   out[c]   += sum_t (p[t] * scale[t,g]) * code[t,c]  +  sum_t p[t] * min[t,g]
// Tile: one page. Tokens (scores) or channels (values) in lanes, two vectors of them times all
// rows, so 2R chains; the folded factors are broadcast from the stack.
//
// Included after a base/simd/lanes_<isa>.h. Unit: how codes are multiplied; it may take them less
// `middle`.
#pragma once

#include "ops/sparse_attention/softmax-inl.h"

namespace tamis {
namespace {

// One code at a time, in f32.
struct FloatCodes {
  using Factor = float;
  static constexpr int kPer = 1;  // codes of a word that one product takes
  template <int kBits>
  static constexpr float kMiddle = 0.0f;

  template <int kBits>
  static TAMIS_INLINE lanes::F32 codes(lanes::Words words, int step) {
    return lanes::codes<kBits>(words, code_shift(step, kBits));
  }
  static TAMIS_INLINE lanes::F32 multiply(lanes::F32 code, const Factor* factor, lanes::F32 sum) {
    return simd::fma(lanes::splat(*factor), code, sum);
  }
  static TAMIS_INLINE void put(lanes::F32 v, Factor* out) { lanes::store(v, out); }
};

// sum + q * (min + middle * step): what q adds beside its products with codes less `middle`. A unit
// whose middle lies outside its codes says how it rounds q * step, so that the error of rounding
// meets codes less the centre of their range, as it does where that is the middle.
template <class Unit, int kBits>
TAMIS_INLINE lanes::F32 beside(lanes::F32 q, lanes::F32 step, lanes::F32 min, lanes::F32 sum) {
  constexpr float kMiddle = Unit::template kMiddle<kBits>;
  if constexpr (requires { Unit::kept(step); }) {
    constexpr float kCentre = 0.5f * ((1 << kBits) - 1);
    const lanes::F32 kept = Unit::kept(lanes::mul(q, step));
    sum = simd::fma(kept, lanes::splat(kMiddle - kCentre), sum);
    return simd::fma(q, simd::fma(lanes::splat(kCentre), step, min), sum);
  }
  return simd::fma(q, simd::fma(lanes::splat(kMiddle), step, min), sum);
}

template <class Unit>
struct PageScratch {
  alignas(64) typename Unit::Factor keys[kMaxRows][kKvMaxHeadDim];
  alignas(64) typename Unit::Factor values[kMaxRows][kKvMaxHeadDim / kKvLanes][kKvMaxTokens];
  // sum_t p[t] * (min[t,g] + middle * scale[t,g]), tokens in lanes.
  alignas(64) float offset[kMaxRows][kKvMaxHeadDim / kKvLanes][simd::kLanes];
  int64_t ahead = 0;  // bytes to the next record
};

TAMIS_INLINE const F16* halves(const uint8_t* record, int64_t offset) {
  return reinterpret_cast<const F16*>(record + offset);
}

TAMIS_INLINE const uint8_t* bytes_at(const F16* p) {
  return reinterpret_cast<const uint8_t*>(p);
}

// sum[v][r] += codes of kVectors vectors of lanes at `words` times factors[r], over `length` codes.
template <class Unit, int kBits, int R, int kVectors, class Factors>
TAMIS_INLINE void products(const uint8_t* const (&words)[kVectors], int64_t length, int64_t ahead,
                           const Factors& factors, lanes::F32 (&sum)[kVectors][R]) {
  constexpr int kPerWord = 32 / kBits;
  constexpr int64_t kRowBytes = 4 * kKvLanes;
  for (int64_t u = 0; u < length / kPerWord; ++u) {
    lanes::Words word[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      word[v] = lanes::load_words(words[v] + u * kRowBytes);
      prefetch(words[v] + u * kRowBytes + ahead);
    }
#pragma GCC unroll 16
    for (int j = 0; j < kPerWord / Unit::kPer; ++j) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const auto code = Unit::template codes<kBits>(word[v], j);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          sum[v][r] =
              Unit::multiply(code, factors(v, r) + u * kPerWord + j * Unit::kPer, sum[v][r]);
        }
      }
    }
  }
}

// Where the words of lane `i` start when the word axis holds `length` codes.
template <int kBits>
TAMIS_INLINE const uint8_t* words_of(const uint8_t* codes, int64_t i, int64_t length) {
  const int64_t block = i / kKvLanes * (length * kBits / 32) * kKvLanes;
  return codes + 4 * (block + i % kKvLanes);
}

template <class Unit, int kBits, int R, int kVectors>
TAMIS_INLINE void key_scores(const uint8_t* codes, int64_t d, int64_t token,
                             const PageScratch<Unit>& scratch, const float (&constant)[R],
                             Tile* tile) {
  const uint8_t* words[kVectors];
  lanes::F32 sum[kVectors][R];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    words[v] = words_of<kBits>(codes, token + v * simd::kLanes, d);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[v][r] = lanes::splat(constant[r]);
  }
  products<Unit, kBits, R>(
      words, d, scratch.ahead,
      [&](int, int r) __attribute__((always_inline)) { return scratch.keys[r]; }, sum);
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) lanes::store(sum[v][r], tile->p[r] + token + v * simd::kLanes);
  }
}

template <class Unit, int kBits, int R>
TAMIS_INLINE void page_scores(const AttentionPart& a, const uint8_t* record,
                              PageScratch<Unit>* scratch, Tile* tile) {
  const KvPageLayout& layout = a.segment->layout;
  const int64_t d = a.head_dim;
  const F16* scale = halves(record, layout.key_scale());
  const F16* min = halves(record, layout.key_min());
  lanes::F32 constant[R];
  for (int r = 0; r < R; ++r) constant[r] = simd::zero();
  for (int64_t c = 0; c < d; c += simd::kLanes) {
    const lanes::F32 step = simd::load(scale + c);
    prefetch(bytes_at(scale + c) + scratch->ahead);
    prefetch(bytes_at(min + c) + scratch->ahead);
    const lanes::F32 least = simd::load(min + c);
    for (int r = 0; r < R; ++r) {
      const lanes::F32 q = simd::load(a.q + r * d + c);
      Unit::put(lanes::mul(q, step), scratch->keys[r] + c);
      constant[r] = beside<Unit, kBits>(q, step, least, constant[r]);
    }
  }
  float constants[R];
  for (int r = 0; r < R; ++r) constants[r] = simd::sum(constant[r]);
  const uint8_t* codes = record + layout.key_codes();
  int64_t t = 0;
  for (; t + 2 * simd::kLanes <= layout.tokens; t += 2 * simd::kLanes) {
    key_scores<Unit, kBits, R, 2>(codes, d, t, *scratch, constants, tile);
  }
  for (; t < layout.tokens; t += simd::kLanes) {
    key_scores<Unit, kBits, R, 1>(codes, d, t, *scratch, constants, tile);
  }
}

template <class Unit, int kBits, int R, int kVectors>
TAMIS_INLINE void weigh_codes(const KvPageLayout& layout, const uint8_t* codes, int64_t channel,
                              const PageScratch<Unit>& scratch, AttentionState* s) {
  const uint8_t* words[kVectors];
  lanes::F32 sum[kVectors][R];
  int64_t group[kVectors];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    const int64_t c = channel + v * simd::kLanes;
    words[v] = words_of<kBits>(codes, c, layout.tokens);
    group[v] = c / layout.group;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[v][r] = simd::load(s->weighted[r] + c);
  }
  products<Unit, kBits, R>(
      words, layout.tokens, scratch.ahead,
      [&](int v, int r) __attribute__((always_inline)) { return scratch.values[r][group[v]]; },
      sum);
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      lanes::store(sum[v][r], s->weighted[r] + channel + v * simd::kLanes);
    }
  }
}

template <class Unit, int kBits, int R>
TAMIS_INLINE void weigh_page(const AttentionPart& a, const uint8_t* record, const Tile& tile,
                             PageScratch<Unit>* scratch, AttentionState* s) {
  const KvPageLayout& layout = a.segment->layout;
  for (int64_t g = 0; g < layout.groups(); ++g) {
    const F16* scale = halves(record, layout.value_scale()) + g * layout.tokens;
    const F16* min = halves(record, layout.value_min()) + g * layout.tokens;
    for (int64_t t = 0; t < layout.tokens; t += simd::kLanes) {
      const lanes::F32 step = simd::load(scale + t);
      prefetch(bytes_at(scale + t) + scratch->ahead);
      prefetch(bytes_at(min + t) + scratch->ahead);
      const lanes::F32 least = simd::load(min + t);
      for (int r = 0; r < R; ++r) {
        const lanes::F32 p = simd::load(tile.p[r] + t);
        Unit::put(lanes::mul(p, step), scratch->values[r][g] + t);
        float* offset = scratch->offset[r][g];
        lanes::store(beside<Unit, kBits>(p, step, least, simd::load(offset)), offset);
      }
    }
  }
  const uint8_t* codes = record + layout.value_codes();
  int64_t c = 0;
  for (; c + 2 * simd::kLanes <= a.head_dim; c += 2 * simd::kLanes) {
    weigh_codes<Unit, kBits, R, 2>(layout, codes, c, *scratch, s);
  }
  for (; c < a.head_dim; c += simd::kLanes) {
    weigh_codes<Unit, kBits, R, 1>(layout, codes, c, *scratch, s);
  }
}

// Calls run<kBits>() for the width of the codes.
template <class Run>
TAMIS_INLINE void with_bits(int bits, const Run& run) {
  switch (bits) {
    case 2:
      return run(Rows<2>{});
    case 4:
      return run(Rows<4>{});
    default:
      return run(Rows<8>{});
  }
}

template <class Unit, int R>
void attend_pages(const AttentionPart& a, AttentionState* s) {
  const KvPageLayout& layout = a.segment->layout;
  const int64_t tokens = layout.tokens;
  PageScratch<Unit> scratch;
  start(s);
  for (auto& row : scratch.offset) {
    for (auto& group : row) {
      for (float& x : group) x = 0.0f;
    }
  }
  Tile tile;
  for (int64_t unit = a.unit_begin; unit < a.unit_end; ++unit) {
    const int64_t page = a.index ? int64_t{a.index[unit]} : unit;
    const int64_t after = unit + 1 < a.unit_end ? unit + 1 : unit;
    scratch.ahead = ((a.index ? int64_t{a.index[after]} : after) - page) * layout.bytes();
    const int64_t first = page * tokens;
    if (first >= a.end || first + tokens <= a.begin) continue;
    const uint8_t* record = static_cast<const uint8_t*>(a.keys) + page * layout.bytes();
    with_bits(layout.key_bits, [&](auto bits) __attribute__((always_inline)) {
      page_scores<Unit, decltype(bits)::kCount, R>(a, record, &scratch, &tile);
    });
    const bool whole = !a.bias && first >= a.begin && first + tokens <= a.end;
    softmax<R>(
        a, tokens, whole, &tile, s, [&](int64_t i) { return first + i; },
        [&](int r, float factor) {
          for (auto& group : scratch.offset[r]) {
            for (float& x : group) x *= factor;
          }
        });
    with_bits(layout.value_bits, [&](auto bits) __attribute__((always_inline)) {
      weigh_page<Unit, decltype(bits)::kCount, R>(a, record, tile, &scratch, s);
    });
  }
  for (int r = 0; r < R; ++r) {
    for (int64_t g = 0; g < layout.groups(); ++g) {
      float offset = 0.0f;
      for (const float x : scratch.offset[r][g]) offset += x;
      float* group = s->weighted[r] + g * layout.group;
      for (int64_t c = 0; c < layout.group; ++c) group[c] += offset;
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_PAGE_ATTENTION(Unit, level)                                                    \
  void sparse_attention_pages_f32_##level(const AttentionPart& a, AttentionState* s) {       \
    with_rows(a.rows, [&](auto rows) { attend_pages<Unit, decltype(rows)::kCount>(a, s); }); \
  }
