// Element types of arrays as C++ types, so that kernels can be templates over them.
#pragma once

#include <cstdint>

#include "base/dtype.h"

// Kernels are built with different -m flags; a helper the linker could merge across objects would
// run the wrong one. So: always inlined, and inside an unnamed namespace.
#define TAMIS_INLINE inline __attribute__((always_inline))

namespace tamis {

struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};

template <class T>
inline constexpr DType kDType = DType::f32;
template <>
inline constexpr DType kDType<F16> = DType::f16;
template <>
inline constexpr DType kDType<BF16> = DType::bf16;
template <>
inline constexpr DType kDType<int8_t> = DType::i8;

}  // namespace tamis
