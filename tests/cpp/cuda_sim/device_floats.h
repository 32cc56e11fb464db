// Arithmetic and roundings on the simulator: the host side of dev_floats.h, a part of device.h,
// which includes it.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "base/numeric.h"
#include "cuda_sim/sim.h"

namespace tamis::dev {

// f32_from_f16 by table: the tests ask for it some billions of times.
inline float from_f16(uint16_t h) {
  return sim::f16_values[h];
}

inline uint32_t pack_f16(float low, float high) {
  return uint32_t{f16_from_f32(low)} | uint32_t{f16_from_f32(high)} << 16;
}
inline uint32_t pack_bf16(float low, float high) {
  return uint32_t{bf16_from_f32(low)} | uint32_t{bf16_from_f32(high)} << 16;
}
inline float half_of(uint32_t pair, int i) {
  return from_f16(static_cast<uint16_t>(pair >> (16 * i)));
}
inline uint32_t mul_f16x2(uint32_t a, uint32_t b) {
  return pack_f16(half_of(a, 0) * half_of(b, 0), half_of(a, 1) * half_of(b, 1));
}
inline uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  return pack_f16(std::fma(half_of(a, 0), half_of(b, 0), half_of(c, 0)),
                  std::fma(half_of(a, 1), half_of(b, 1), half_of(c, 1)));
}
inline uint32_t max_f16x2(uint32_t a, uint32_t b) {
  return pack_f16(std::fmax(half_of(a, 0), half_of(b, 0)), std::fmax(half_of(a, 1), half_of(b, 1)));
}
inline uint32_t min_f16x2(uint32_t a, uint32_t b) {
  return pack_f16(std::fmin(half_of(a, 0), half_of(b, 0)), std::fmin(half_of(a, 1), half_of(b, 1)));
}

inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto half = [](uint32_t pair, int i) {
    return f32_from_bf16(static_cast<uint16_t>(pair >> (16 * i)));
  };
  return pack_bf16(std::fma(half(a, 0), half(b, 0), half(c, 0)),
                   std::fma(half(a, 1), half(b, 1), half(c, 1)));
}

inline float exp2(float x) {
  return std::exp2(x);
}
inline float max(float a, float b) {
  return std::fmax(a, b);
}
inline float log2(float x) {
  return std::log2(x);
}
inline float reciprocal(float x) {
  return 1 / x;
}
inline float divide(float a, float b) {
  return a / b;
}
inline float sqrt(float x) {
  return std::sqrt(x);
}
inline float fma(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float mul(float a, float b) {
  return a * b;
}
inline float add(float a, float b) {
  return a + b;
}
inline int32_t round_to_int(float x) {
  return static_cast<int32_t>(std::nearbyint(x));
}
inline uint32_t bits_of(float x) {
  return std::bit_cast<uint32_t>(x);
}
inline float float_of(uint32_t bits) {
  return std::bit_cast<float>(bits);
}

inline float bf16_to_f32(uint16_t h) {
  return f32_from_bf16(h);
}
inline float f16_to_f32(uint16_t h) {
  return from_f16(h);
}
inline uint16_t f32_to_bf16(float f) {
  return bf16_from_f32(f);
}
inline uint16_t f32_to_f16(float f) {
  return f16_from_f32(f);
}

}  // namespace tamis::dev
