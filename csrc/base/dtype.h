// The element types tamis stores and computes with.
#pragma once

#include <cstdint>

namespace tamis {

// Values are stable: they cross the Python binding and name nothing on disk.
// u4, u8: codes with a scale and a zero point, of weights alone.
enum class DType : uint8_t { f32 = 0, f16 = 1, bf16 = 2, i8 = 3, u4 = 4, u8 = 5 };

constexpr bool is_float(DType t) {
  return t == DType::f32 || t == DType::f16 || t == DType::bf16;
}

// Bytes of an array's element, and how many elements hold n values: a byte holds two of u4.
constexpr int64_t size_of(DType t) {
  return t == DType::f32 ? 4 : is_float(t) ? 2 : 1;
}
constexpr int64_t value_elements(DType t, int64_t n) {
  return t == DType::u4 ? (n + 1) / 2 : n;
}

constexpr const char* name_of(DType t) {
  switch (t) {
    case DType::f32:
      return "f32";
    case DType::f16:
      return "f16";
    case DType::bf16:
      return "bf16";
    case DType::i8:
      return "i8";
    case DType::u4:
      return "u4";
    case DType::u8:
      return "u8";
  }
  return "?";
}

}  // namespace tamis
