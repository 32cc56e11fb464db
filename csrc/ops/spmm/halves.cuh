// 16-bit floats of either kind, as the products on CUDA read and write them.
#pragma once

#include "base/cuda/dev.h"
#include "base/dtype.h"

namespace tamis {

template <DType kType>
TAMIS_DEVICE float widen(uint16_t bits) {
  return kType == DType::bf16 ? dev::bf16_to_f32(bits) : dev::f16_to_f32(bits);
}
template <DType kType>
TAMIS_DEVICE uint16_t narrow(float value) {
  return kType == DType::bf16 ? dev::f32_to_bf16(value) : dev::f32_to_f16(value);
}
// The halves of a pair.
template <DType kType>
TAMIS_DEVICE float widen_low(uint32_t pair) {
  return kType == DType::bf16 ? dev::float_of(pair << 16)
                              : dev::f16_to_f32(static_cast<uint16_t>(pair));
}
template <DType kType>
TAMIS_DEVICE float widen_high(uint32_t pair) {
  return kType == DType::bf16 ? dev::float_of(pair & 0xffff0000u)
                              : dev::f16_to_f32(static_cast<uint16_t>(pair >> 16));
}

}  // namespace tamis
