// What tests on the simulator make their arrays of: numbers by dtype, memory on multiples of 16
// bytes between guard pages.
#pragma once

#include <cstdint>
#include <memory>
#include <random>

#include "base/dtype.h"
#include "base/numeric.h"
#include "format/matrix.h"
#include "guarded.h"

namespace tamis::test {

inline float widened(uint16_t bits, DType dtype) {
  return dtype == DType::bf16 ? f32_from_bf16(bits) : f32_from_f16(bits);
}
inline uint16_t narrowed(float value, DType dtype) {
  return dtype == DType::bf16 ? bf16_from_f32(value) : f16_from_f32(value);
}
// Element i of an array of f32, f16 or bf16.
inline void put(DType dtype, void* to, int64_t i, float value) {
  if (dtype == DType::f32) {
    static_cast<float*>(to)[i] = value;
  } else {
    static_cast<uint16_t*>(to)[i] = narrowed(value, dtype);
  }
}

struct alignas(16) Chunk {
  uint8_t bytes[16];
};
using Chunks = std::unique_ptr<Guarded<Chunk>>;

inline Chunks memory(int64_t bytes) {
  return std::make_unique<Guarded<Chunk>>(static_cast<size_t>(ceil_div(bytes, 16)));
}
// Normal numbers of that standard deviation.
inline Chunks normal_numbers(int64_t count, DType dtype, float deviation, std::mt19937_64* random) {
  Chunks made = memory(count * size_of(dtype));
  std::normal_distribution<float> normal(0, deviation);
  for (int64_t i = 0; i < count; ++i) put(dtype, made->data(), i, normal(*random));
  return made;
}

}  // namespace tamis::test
