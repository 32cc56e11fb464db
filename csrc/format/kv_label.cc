// Labels of cached keys: checked, written, read back.
#include "format/kv_label.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/elements.h"
#include "base/numeric.h"

namespace tamis {
namespace {

constexpr float kF16Max = 65504.0f;

float clamp_to_f16(float x) {
  x = x > -kF16Max ? x : -kF16Max;  // also catches NaN
  return (x < kF16Max ? x : kF16Max) + 0.0f;
}

uint16_t round_down(float x) {
  const uint16_t h = f16_from_f32(x);
  if (f32_from_f16(h) <= x) return h;
  if (h == 0) return 0x8001;
  return static_cast<uint16_t>(h & 0x8000u ? h + 1 : h - 1);
}

uint16_t round_up(float x) {  // x >= 0
  const uint16_t h = f16_from_f32(x);
  return static_cast<uint16_t>(f32_from_f16(h) >= x ? h : h + 1);
}

void put(uint8_t* record, int64_t at, const void* value, size_t size) {
  std::memcpy(record + at, value, size);
}

}  // namespace

Status check_kv_label(const KvLabelLayout& a) {
  if (a.channels < 8 || a.channels > kLabelMaxChannels || a.channels % 8 != 0) {
    return error(Code::invalid_argument,
                 "kv_label: channels: got %d, wanted a multiple of 8 from 8 to %d", a.channels,
                 kLabelMaxChannels);
  }
  return {};
}

void pack_kv_labels(const KvLabelLayout& a, DType dtype, const void* keys, int64_t token_stride,
                    const int32_t* channel_ids, int64_t first, int64_t count, void* records) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t token = first + i, lane = token % kLabelTokens;
    auto* record = static_cast<uint8_t*>(records) + token / kLabelTokens * a.bytes();
    if (lane == 0) std::memset(record, 0, static_cast<size_t>(a.bytes()));
    float x[kLabelMaxChannels];
    for (int32_t c = 0; c < a.channels; ++c) {
      x[c] = clamp_to_f16(load_element(dtype, keys, i * token_stride + channel_ids[c]));
    }
    const auto [low, high] = std::minmax_element(x, x + a.channels);
    const uint16_t min = round_down(*low);
    const float origin = f32_from_f16(min);
    const uint16_t scale = round_up((*high - origin) / 15.0f);
    const float step = f32_from_f16(scale), inverse = step > 0.0f ? 1.0f / step : 0.0f;
    put(record, a.scale() + 2 * lane, &scale, sizeof scale);
    put(record, a.min() + 2 * lane, &min, sizeof min);
    for (int32_t w = 0; w < a.channels / 8; ++w) {
      uint32_t word = 0;
      for (int j = 0; j < 8; ++j) {
        const float steps = std::min((x[8 * w + j] - origin) * inverse, 15.0f);
        word |= static_cast<uint32_t>(std::floor(steps + 0.5f)) << code_bit(j);
      }
      put(record, 4 * (int64_t{w} * kLabelTokens + lane), &word, sizeof word);
    }
  }
}

void unpack_kv_labels(const KvLabelLayout& a, const void* records, int64_t count, float* out) {
  for (int64_t token = 0; token < count; ++token) {
    const int64_t lane = token % kLabelTokens;
    const auto* record = static_cast<const uint8_t*>(records) + token / kLabelTokens * a.bytes();
    uint16_t scale, min;
    std::memcpy(&scale, record + a.scale() + 2 * lane, sizeof scale);
    std::memcpy(&min, record + a.min() + 2 * lane, sizeof min);
    for (int32_t c = 0; c < a.channels; ++c) {
      uint32_t word;
      std::memcpy(&word, record + 4 * (int64_t{c / 8} * kLabelTokens + lane), sizeof word);
      const uint32_t code = word >> code_bit(c % 8) & 15;
      out[token * a.channels + c] =
          f32_from_f16(min) + f32_from_f16(scale) * static_cast<float>(code);
    }
  }
}

}  // namespace tamis
