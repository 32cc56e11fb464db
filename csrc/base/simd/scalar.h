// Portable counterpart of avx2.h and avx512.h: one lane.
#pragma once

#include "base/numeric.h"
#include "base/simd/element.h"

namespace tamis::scalar {
namespace {

TAMIS_INLINE float to_f32(float v) {
  return v;
}
TAMIS_INLINE float to_f32(F16 v) {
  return f32_from_f16(v.bits);
}
TAMIS_INLINE float to_f32(BF16 v) {
  return f32_from_bf16(v.bits);
}
TAMIS_INLINE float to_f32(int8_t v) {
  return v;
}

TAMIS_INLINE void store(float v, float* p) {
  *p = v;
}
TAMIS_INLINE void store(float v, F16* p) {
  p->bits = f16_from_f32(v);
}
TAMIS_INLINE void store(float v, BF16* p) {
  p->bits = bf16_from_f32(v);
}

}  // namespace
}  // namespace tamis::scalar
