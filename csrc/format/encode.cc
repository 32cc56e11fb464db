#include "format/encode.h"

#include <bit>

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

}  // namespace

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
