// The element types tamis stores and computes with.
#pragma once

#include <cstdint>

namespace tamis {

// Values are stable: they cross the Python binding and name nothing on disk.
enum class DType : uint8_t { f32 = 0, f16 = 1, bf16 = 2, i8 = 3 };

constexpr int64_t size_of(DType t) {
  return t == DType::f32 ? 4 : t == DType::i8 ? 1 : 2;
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
  }
  return "?";
}

}  // namespace tamis
