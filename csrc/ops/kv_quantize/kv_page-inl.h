// code = round_even((x - min) / scale), min and scale in f16, per group; written as a kv_page.
// Plain loops over neighbouring channels, compiled once per ISA: nothing here may be contracted or
// reordered by the compiler into other bits (a difference times a factor has no fused form).
// Needs: rows of d contiguous elements.   Tail: none, d and the tokens are multiples of 16.
#pragma once

#include <cstdint>

#include "base/simd/element.h"
#include "format/kv_page.h"
#include "ops/kv_quantize/kv_quantize.h"

namespace tamis {
namespace {

constexpr float kF16Max = 65504.0f;

TAMIS_INLINE float clamp_to_f16(float x) {
  x = x > -kF16Max ? x : -kF16Max;            // also catches NaN
  return (x < kF16Max ? x : kF16Max) + 0.0f;  // -0 becomes +0
}

TAMIS_INLINE uint16_t f16_bits(float x) {
  F16 h;
  simd::store(x, &h);
  return h.bits;
}

// The next f16 away from zero (up for positive) or towards it; finite operands only.
TAMIS_INLINE uint16_t f16_round_down(float x) {
  uint16_t h = f16_bits(x);
  if (simd::to_f32(F16{h}) <= x) return h;
  if (h == 0) return 0x8001;  // +0 stands above a tiny negative x
  return static_cast<uint16_t>(h & 0x8000u ? h + 1 : h - 1);
}
TAMIS_INLINE uint16_t f16_round_up(float x) {  // x >= 0
  const uint16_t h = f16_bits(x);
  return static_cast<uint16_t>(simd::to_f32(F16{h}) >= x ? h : h + 1);
}

// What the codes of one group are made with.
struct KvGroup {
  uint16_t min, scale;
  float origin, inverse;
};

TAMIS_INLINE KvGroup kv_group(float low, float high, int bits) {
  KvGroup g;
  g.min = f16_round_down(low);
  g.origin = simd::to_f32(F16{g.min});
  const auto top = static_cast<float>((1 << bits) - 1);
  g.scale = f16_round_up((high - g.origin) / top);
  const float step = simd::to_f32(F16{g.scale});
  g.inverse = step > 0.0f ? 1.0f / step : 0.0f;
  return g;
}

TAMIS_INLINE int32_t kv_code(float x, float origin, float inverse, float top) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves no fraction bits: round to even
  float steps = (x - origin) * inverse;
  steps = steps < top ? steps : top;
  return static_cast<int32_t>((steps + kRound) - kRound);  // steps >= 0, as origin <= x
}

// The codes of [lanes, length] (values of lane i: codes[i * length ...]) to words, 16 lanes beside
// each other.
template <int kBits>
TAMIS_INLINE void kv_words(const uint8_t* codes, int64_t lanes, int64_t length, uint8_t* out) {
  constexpr int kPerWord = 32 / kBits;
  for (int64_t block = 0; block < lanes; block += kKvLanes) {
    for (int64_t at = 0; at < length; at += kPerWord) {
      uint32_t words[kKvLanes];
      for (int64_t lane = 0; lane < kKvLanes; ++lane) {
        const uint8_t* code = codes + (block + lane) * length + at;
        uint32_t word = 0;
        for (int j = 0; j < kPerWord; ++j) word |= uint32_t{code[j]} << code_shift(j, kBits);
        words[lane] = word;
      }
      __builtin_memcpy(out, words, sizeof words);
      out += sizeof words;
    }
  }
}

TAMIS_INLINE void kv_words_of(const uint8_t* codes, int64_t lanes, int64_t length, int bits,
                              uint8_t* out) {
  switch (bits) {
    case 2:
      return kv_words<2>(codes, lanes, length, out);
    case 4:
      return kv_words<4>(codes, lanes, length, out);
    default:
      return kv_words<8>(codes, lanes, length, out);
  }
}

template <class T>
TAMIS_INLINE void load_rows(const T* x, int64_t stride, int64_t tokens, int64_t d, float* rows) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < d; c += simd::kLanes) {
      simd::store(simd::load(x + t * stride + c), rows + t * d + c);
    }
  }
  for (int64_t i = 0; i < tokens * d; ++i) rows[i] = clamp_to_f16(rows[i]);
}

// Groups over tokens: rows[t][c] with a scale per channel.
TAMIS_INLINE void quantize_keys(const KvPageLayout& a, const float* rows, uint8_t* record) {
  const int64_t d = a.head_dim;
  float low[kKvMaxHeadDim], high[kKvMaxHeadDim], origin[kKvMaxHeadDim], inverse[kKvMaxHeadDim];
  for (int64_t c = 0; c < d; ++c) low[c] = high[c] = rows[c];
  for (int64_t t = 1; t < a.tokens; ++t) {
    for (int64_t c = 0; c < d; ++c) {
      const float x = rows[t * d + c];
      low[c] = x < low[c] ? x : low[c];
      high[c] = x > high[c] ? x : high[c];
    }
  }
  uint16_t scale[kKvMaxHeadDim], min[kKvMaxHeadDim];
  for (int64_t c = 0; c < d; ++c) {
    const KvGroup g = kv_group(low[c], high[c], a.key_bits);
    scale[c] = g.scale;
    min[c] = g.min;
    origin[c] = g.origin;
    inverse[c] = g.inverse;
  }
  const auto size = static_cast<size_t>(d) * sizeof(uint16_t);
  __builtin_memcpy(record + a.key_scale(), scale, size);
  __builtin_memcpy(record + a.key_min(), min, size);
  const auto top = static_cast<float>((1 << a.key_bits) - 1);
  uint8_t codes[kKvMaxTokens * kKvMaxHeadDim];  // [tokens, d]
  for (int64_t t = 0; t < a.tokens; ++t) {
    for (int64_t c = 0; c < d; ++c) {
      codes[t * d + c] = static_cast<uint8_t>(kv_code(rows[t * d + c], origin[c], inverse[c], top));
    }
  }
  kv_words_of(codes, a.tokens, d, a.key_bits, record + a.key_codes());
}

// Groups over channels: rows[t][c] with a scale per token and group.
TAMIS_INLINE void quantize_values(const KvPageLayout& a, const float* rows, uint8_t* record) {
  const int64_t d = a.head_dim;
  const auto top = static_cast<float>((1 << a.value_bits) - 1);
  uint8_t codes[kKvMaxTokens * kKvMaxHeadDim];  // [d, tokens]
  uint16_t scale[kKvMaxTokens], min[kKvMaxTokens];
  for (int64_t first = 0; first < d; first += a.group) {
    for (int64_t t = 0; t < a.tokens; ++t) {
      const float* x = rows + t * d + first;
      float low = x[0], high = x[0];
      for (int64_t c = 1; c < a.group; ++c) {
        low = x[c] < low ? x[c] : low;
        high = x[c] > high ? x[c] : high;
      }
      const KvGroup g = kv_group(low, high, a.value_bits);
      scale[t] = g.scale;
      min[t] = g.min;
      for (int64_t c = 0; c < a.group; ++c) {
        codes[(first + c) * a.tokens + t] =
            static_cast<uint8_t>(kv_code(x[c], g.origin, g.inverse, top));
      }
    }
    const auto size = static_cast<size_t>(a.tokens) * sizeof(uint16_t);
    const int64_t at = first / a.group * static_cast<int64_t>(size);
    __builtin_memcpy(record + a.value_scale() + at, scale, size);
    __builtin_memcpy(record + a.value_min() + at, min, size);
  }
  kv_words_of(codes, d, a.tokens, a.value_bits, record + a.value_codes());
}

template <class T>
TAMIS_INLINE void quantize_page(const KvQuantizeArgs& a, const void* keys, const void* values,
                                void* record) {
  const KvPageLayout& layout = a.layout;
  auto* bytes = static_cast<uint8_t*>(record);
  float rows[kKvMaxTokens * kKvMaxHeadDim];
  load_rows(static_cast<const T*>(keys), a.key_token_stride, layout.tokens, layout.head_dim, rows);
  quantize_keys(layout, rows, bytes);
  load_rows(static_cast<const T*>(values), a.value_token_stride, layout.tokens, layout.head_dim,
            rows);
  quantize_values(layout, rows, bytes);
}

}  // namespace
}  // namespace tamis

#define TAMIS_KV_QUANTIZE_KERNELS(level)                                               \
  void kv_quantize_f32_##level(const KvQuantizeArgs& a, const void* k, const void* v,  \
                               void* record) {                                         \
    quantize_page<float>(a, k, v, record);                                             \
  }                                                                                    \
  void kv_quantize_f16_##level(const KvQuantizeArgs& a, const void* k, const void* v,  \
                               void* record) {                                         \
    quantize_page<F16>(a, k, v, record);                                               \
  }                                                                                    \
  void kv_quantize_bf16_##level(const KvQuantizeArgs& a, const void* k, const void* v, \
                                void* record) {                                        \
    quantize_page<BF16>(a, k, v, record);                                              \
  }
