// Elements of arrays of f32, f16 or bf16, one by one.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/numeric.h"

namespace tamis {

inline float load_element(DType type, const void* p, int64_t i) {
  switch (type) {
    case DType::f16:
      return f32_from_f16(static_cast<const uint16_t*>(p)[i]);
    case DType::bf16:
      return f32_from_bf16(static_cast<const uint16_t*>(p)[i]);
    default:
      return static_cast<const float*>(p)[i];
  }
}

inline void store_element(DType type, float v, void* p, int64_t i) {
  switch (type) {
    case DType::f16:
      static_cast<uint16_t*>(p)[i] = f16_from_f32(v);
      break;
    case DType::bf16:
      static_cast<uint16_t*>(p)[i] = bf16_from_f32(v);
      break;
    default:
      static_cast<float*>(p)[i] = v;
  }
}

}  // namespace tamis
