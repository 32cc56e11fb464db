// Portable bit-level helpers: 16-bit floats to and from f32, population counts.
#pragma once

#include <bit>
#include <cstdint>

namespace tamis {

static_assert(std::endian::native == std::endian::little, "mask words and files are little-endian");

inline float f32_from_bf16(uint16_t h) {
  return std::bit_cast<float>(static_cast<uint32_t>(h) << 16);
}

// Rounds to nearest even; a NaN keeps its sign and becomes quiet.
inline uint16_t bf16_from_f32(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

inline float f32_from_f16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // Inf, NaN: all exponent bits of f32
    return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  if (magnitude < 0x400u) {  // denormal: an exact product, and no f32 denormal on the way
    const float f = static_cast<float>(magnitude) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(f) | sign);
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));  // bias 15 -> 127
}

// Rounds to nearest even, overflows to Inf; a NaN keeps its sign and becomes quiet.
inline uint16_t f16_from_f32(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  const auto sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above round to Inf
  if (magnitude < 0x38800000u) {
    // Denormal in f16: adding 0.5 aligns the last kept bit with f32's last mantissa bit.
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(aligned) - 0x3f000000u);
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
}

// Ones in each field of `width` bits (2, 4, 8, 16, 32 or 64), every count in its own field.
// Spelled out because baseline x86-64 has no POPCNT instruction and calls a table lookup instead.
inline uint64_t field_counts(uint64_t x, int width) {
  x -= (x >> 1) & 0x5555555555555555u;
  if (width == 2) return x;
  x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
  if (width == 4) return x;
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  if (width == 8) return x;
  if (width == 64) return (x * 0x0101010101010101u) >> 56;
  x = (x + (x >> 8)) & 0x00ff00ff00ff00ffu;
  if (width == 16) return x;
  return (x + (x >> 16)) & 0x0000ffff0000ffffu;
}

inline int popcount(uint64_t x) {
  return static_cast<int>(field_counts(x, 64));
}

}  // namespace tamis
