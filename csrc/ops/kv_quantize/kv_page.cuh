// code = round_even((x - min) / scale), min and scale in f16, per group; written as a kv_page, with
// the arithmetic of kv_page-inl.h so that every byte is the same. Tile: a block makes one record:
// the page to f32 in shared memory, a thread per group, a thread per word of codes; keys, then
// values.   Needs: records at multiples of 4 bytes.
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "ops/kv_quantize/kv_quantize_cuda.h"

namespace tamis {

TAMIS_DEVICE float kv_clamp(float x) {
  constexpr float kF16Max = 65504.0f;
  x = x > -kF16Max ? x : -kF16Max;  // also catches NaN
  return dev::add(x < kF16Max ? x : kF16Max, 0.0f);
}
TAMIS_DEVICE uint16_t kv_round_down(float x) {
  const uint16_t h = dev::f32_to_f16(x);
  if (dev::f16_to_f32(h) <= x) return h;
  if (h == 0) return 0x8001;  // +0 stands above a tiny negative x
  return static_cast<uint16_t>(h & 0x8000u ? h + 1 : h - 1);
}
TAMIS_DEVICE uint16_t kv_round_up(float x) {  // x >= 0
  const uint16_t h = dev::f32_to_f16(x);
  return static_cast<uint16_t>(dev::f16_to_f32(h) >= x ? h : h + 1);
}

struct KvGroupCodes {
  uint16_t min, scale;
  float origin, inverse;

  TAMIS_DEVICE KvGroupCodes(float low, float high, float top) {
    min = kv_round_down(low);
    origin = dev::f16_to_f32(min);
    scale = kv_round_up(dev::divide(dev::add(high, -origin), top));
    const float step = dev::f16_to_f32(scale);
    inverse = step > 0.0f ? dev::divide(1.0f, step) : 0.0f;
  }
};

// Groups of `count` elements `step` floats apart in shared memory; codes beside each other in the
// same order. Group i of `groups` begins at first(i) and writes its scale and min at place(i).
template <class First, class Place>
TAMIS_DEVICE void quantize_groups(int32_t groups, int32_t count, uint32_t step, int bits,
                                  uint32_t codes_at, uint8_t* scales, uint8_t* minima,
                                  const First& first, const Place& place) {
  const float top = static_cast<float>((1 << bits) - 1);
  for (auto i = static_cast<int32_t>(dev::thread_index()); i < groups; i += kQuantizeThreads) {
    const uint32_t begin = first(i);
    float low = dev::load_shared<float>(4 * begin), high = low;
    for (int32_t j = 1; j < count; ++j) {
      const float x = dev::load_shared<float>(4 * (begin + static_cast<uint32_t>(j) * step));
      low = x < low ? x : low;
      high = x > high ? x : high;
    }
    const KvGroupCodes g(low, high, top);
    reinterpret_cast<uint16_t*>(scales)[place(i)] = g.scale;
    reinterpret_cast<uint16_t*>(minima)[place(i)] = g.min;
    for (int32_t j = 0; j < count; ++j) {
      const uint32_t at = begin + static_cast<uint32_t>(j) * step;
      const float steps = dev::mul(dev::add(dev::load_shared<float>(4 * at), -g.origin), g.inverse);
      dev::store_shared<uint8_t>(
          codes_at + at, static_cast<uint8_t>(dev::round_to_int(steps < top ? steps : top)));
    }
  }
}

// Words of the codes of [lanes, length]: code (lane, j) lies at lane * lane_step + j * step.
TAMIS_DEVICE void write_words(int32_t lanes, int32_t length, int bits, uint32_t codes_at,
                              uint32_t lane_step, uint32_t step, uint8_t* out) {
  const int32_t per = 32 / bits, words = length / per;
  for (auto i = static_cast<int32_t>(dev::thread_index()); i < lanes * words;
       i += kQuantizeThreads) {
    const int32_t lane = i % kKvLanes + i / (kKvLanes * words) * kKvLanes;
    const int32_t at = i / kKvLanes % words * per;
    uint32_t word = 0;
    for (int32_t j = 0; j < per; ++j) {
      const uint32_t from =
          codes_at + static_cast<uint32_t>(lane) * lane_step + static_cast<uint32_t>(at + j) * step;
      word |= uint32_t{dev::load_shared<uint8_t>(from)} << (j / 2 * bits + j % 2 * 16);
    }
    reinterpret_cast<uint32_t*>(out)[i] = word;
  }
}

TAMIS_DEVICE void load_page(const KvQuantizeArgs& a, const void* from, int64_t head_stride,
                            int64_t token_stride, int64_t head, int64_t page) {
  const int32_t d = a.layout.head_dim, tokens = a.layout.tokens;
  dev::sync_block();  // nobody reads what was there
  for (auto i = static_cast<int32_t>(dev::thread_index()); i < tokens * d; i += kQuantizeThreads) {
    const int64_t token = page * tokens + i / d;
    const float x = load_float(a.dtype, from, head * head_stride + token * token_stride + i % d);
    dev::store_shared<float>(4 * static_cast<uint32_t>(i / d * (d + 1) + i % d), kv_clamp(x));
  }
  dev::sync_block();
}

// Offsets of a record's parts, which host code computes.
struct KvPageOffsets {
  int64_t value_codes, key_scale, key_min, value_scale, value_min, bytes;
};

struct KvQuantizeParams {
  KvQuantizeArgs args;
  KvPageOffsets at;
};

inline KvQuantizeParams kv_quantize_params(const KvQuantizeArgs& a) {
  return {a,
          {a.layout.value_codes(), a.layout.key_scale(), a.layout.key_min(), a.layout.value_scale(),
           a.layout.value_min(), a.layout.bytes()}};
}

// Grid [pages, heads] of kQuantizeThreads.
TAMIS_DEVICE void kv_quantize_page(const KvQuantizeParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const KvQuantizeArgs& a = p.args;
  const int64_t head = dev::block_index_y(), page = dev::block_index_x();
  const auto d = static_cast<uint32_t>(a.layout.head_dim);
  const auto tokens = static_cast<uint32_t>(a.layout.tokens);
  const auto group = static_cast<uint32_t>(a.layout.group);
  auto* record = static_cast<uint8_t*>(a.out) + head * a.out_stride_bytes + page * p.at.bytes;
  const uint32_t pitch = d + 1;  // of tokens, so that neither groups meet in banks
  const uint32_t codes = 4 * tokens * pitch;
  load_page(a, a.keys, a.key_head_stride, a.key_token_stride, head, page);
  quantize_groups(
      a.layout.head_dim, a.layout.tokens, pitch, a.layout.key_bits, codes, record + p.at.key_scale,
      record + p.at.key_min, [](int32_t i) { return static_cast<uint32_t>(i); },
      [](int32_t i) { return i; });
  dev::sync_block();
  write_words(a.layout.tokens, a.layout.head_dim, a.layout.key_bits, codes, pitch, 1, record);
  load_page(a, a.values, a.value_head_stride, a.value_token_stride, head, page);
  const auto groups = static_cast<int32_t>(d / group * tokens);
  quantize_groups(
      groups, a.layout.group, 1, a.layout.value_bits, codes, record + p.at.value_scale,
      record + p.at.value_min,
      [&](int32_t i) {
        const auto n = static_cast<uint32_t>(i);
        return n % tokens * pitch + n / tokens * group;
      },
      [](int32_t i) { return i; });
  dev::sync_block();
  write_words(a.layout.head_dim, a.layout.tokens, a.layout.value_bits, codes, 1, pitch,
              record + p.at.value_codes);
}

}  // namespace tamis
