// Codes of weights, portable.
#include "format/encode.h"

#include <algorithm>
#include <cmath>

#include "base/numeric.h"

namespace tamis {
namespace {

int8_t code(float steps) {
  steps = steps > -127.0f ? steps : -127.0f;  // also catches NaN
  steps = steps < 127.0f ? steps : 127.0f;
  constexpr float kRound = 0x1.8p23f;  // adding it leaves no fraction bits: round to even
  return static_cast<int8_t>((steps + kRound) - kRound);
}

template <class T, class ToF32>
void encode(const T* __restrict w, ToF32 to_f32, int n, float divisor, int8_t* __restrict codes) {
  for (int j = 0; j < n; ++j) codes[j] = code(to_f32(w[j]) / divisor);
}

// The smallest f16 that is at least v; v >= 0, at most kLargestF16.
uint16_t f16_above(float v) {
  const uint16_t h = f16_from_f32(v);
  return f32_from_f16(h) < v ? static_cast<uint16_t>(h + 1) : h;
}

template <class T, class ToF32>
bool encode_group(const T* source, ToF32 to_f32, const uint8_t* keep, int n, float highest,
                  uint8_t* codes, uint16_t* scale) {
  float w[32], low = 0, high = 0, sum = 0;
  for (int j = 0; j < n; ++j) {
    w[j] = !keep || keep[j] ? to_f32(source[j]) : 0.0f;
    low = std::min(low, w[j]);
    high = std::max(high, w[j]);
    sum += w[j] * 0.0f;  // NaN once one weight is Inf or NaN
  }
  const float wanted = high / highest - low / highest;
  if (!(wanted <= kLargestF16) || sum != 0) return false;
  scale[0] = f16_above(wanted);
  const float step = scale[0] == 0 ? 1.0f : f32_from_f16(scale[0]);
  const float zero = std::min(highest, std::nearbyint((0.0f - low) / step));
  scale[1] = f16_from_f32(zero);
  for (int j = 0; j < n; ++j) {
    const float code = w[j] / step + zero;
    codes[j] = static_cast<uint8_t>(std::clamp(code + 0.5f, 0.0f, highest));
  }
  return true;
}

}  // namespace

bool encode_groups_scalar(const GroupSource& row, const int64_t* at, int count, float highest,
                          uint8_t* codes, uint16_t* scales) {
  const auto encode = [&](const auto* w, const auto& to_f32) {
    bool fits = true;
    for (int i = 0; i < count; ++i) {
      const uint8_t* keep = row.keep ? row.keep + at[i] : nullptr;
      fits &=
          encode_group(w + at[i], to_f32, keep, row.n, highest, codes + i * row.n, scales + 2 * i);
    }
    return fits;
  };
  if (row.dtype == DType::f32) {
    return encode(static_cast<const float*>(row.w), [](float f) { return f; });
  }
  const auto* halves = static_cast<const uint16_t*>(row.w);
  return row.dtype == DType::f16 ? encode(halves, f32_from_f16) : encode(halves, f32_from_bf16);
}

void encode_scalar(const void* w, DType dtype, int n, float divisor, int8_t* codes) {
  switch (dtype) {
    case DType::f32:
      return encode(static_cast<const float*>(w), [](float f) { return f; }, n, divisor, codes);
    case DType::f16:
      return encode(static_cast<const uint16_t*>(w), f32_from_f16, n, divisor, codes);
    default:
      return encode(static_cast<const uint16_t*>(w), f32_from_bf16, n, divisor, codes);
  }
}

}  // namespace tamis
