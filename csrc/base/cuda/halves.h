// 16-bit floats of either kind: the intrinsics that differ in their names alone, by dtype.
#pragma once

#include "base/cuda/dev.h"
#include "base/dtype.h"

namespace tamis {

TAMIS_DEVICE float widen(DType type, uint16_t bits) {
  return type == DType::bf16 ? dev::bf16_to_f32(bits) : dev::f16_to_f32(bits);
}
template <DType kType>
TAMIS_DEVICE float widen(uint16_t bits) {
  return widen(kType, bits);
}
// Element i of an array of f32, f16 or bf16.
TAMIS_DEVICE float load_float(DType type, const void* x, int64_t i) {
  switch (type) {
    case DType::f16:
      return dev::f16_to_f32(dev::load_global(static_cast<const uint16_t*>(x) + i));
    case DType::bf16:
      return dev::bf16_to_f32(dev::load_global(static_cast<const uint16_t*>(x) + i));
    default:
      return dev::load_global(static_cast<const float*>(x) + i);
  }
}
TAMIS_DEVICE uint16_t narrow(DType type, float value) {
  return type == DType::bf16 ? dev::f32_to_bf16(value) : dev::f32_to_f16(value);
}
template <DType kType>
TAMIS_DEVICE uint16_t narrow(float value) {
  return narrow(kType, value);
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
template <DType kType>
TAMIS_DEVICE uint32_t pack(float low, float high) {
  return kType == DType::bf16 ? dev::pack_bf16(low, high) : dev::pack_f16(low, high);
}

// c += a * b for fragments of m16n8k16.
template <DType kType>
TAMIS_DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(kType == DType::bf16 || kType == DType::f16, "tensor cores take 16-bit floats");
  if constexpr (kType == DType::bf16) {
    dev::mma_bf16(c, a, b0, b1);
  } else {
    dev::mma_f16(c, a, b0, b1);
  }
}
template <DType kType>
TAMIS_DEVICE void multiply(float (&c)[4], const dev::Word4& a, uint32_t b0, uint32_t b1) {
  multiply<kType>(c, {a.x, a.y, a.z, a.w}, b0, b1);
}
// The same of m16n8k32 with two of every four elements of a row of `a` kept.
template <DType kType, int kSelector>
TAMIS_DEVICE void multiply_sparse(float (&c)[4], const dev::Word4& a, const dev::Word4& b,
                                  uint32_t places) {
  if constexpr (kType == DType::bf16) {
    dev::mma_sparse_bf16<kSelector>(c, a, b, places);
  } else {
    dev::mma_sparse_f16<kSelector>(c, a, b, places);
  }
}
// The same of a warpgroup's 64 rows and as many tokens as c has tiles; b: dev::matrix_at the
// columns. Both of a and places are read until the product is waited for.
template <DType kType, int kSelector, int kTiles>
TAMIS_DEVICE void multiply_group_sparse(float (&c)[kTiles][4], const dev::Word4& a, uint64_t b,
                                        const uint32_t& places) {
  if constexpr (kType == DType::bf16) {
    dev::group_sparse_bf16<kSelector>(c, a, b, places);
  } else {
    dev::group_sparse_f16<kSelector>(c, a, b, places);
  }
}
// The same of dense weights, 16 columns.
template <DType kType, int kTiles>
TAMIS_DEVICE void multiply_group(float (&c)[kTiles][4], const dev::Word4& a, uint64_t b) {
  if constexpr (kType == DType::bf16) {
    dev::group_bf16(c, a, b);
  } else {
    dev::group_f16(c, a, b);
  }
}
// The same where b lies in rows of 8 kTiles columns: dev::matrix_of_rows.
template <DType kType, int kTiles>
TAMIS_DEVICE void multiply_group_rows(float (&c)[kTiles][4], const dev::Word4& a, uint64_t b) {
  if constexpr (kType == DType::bf16) {
    dev::group_rows_bf16(c, a, b);
  } else {
    dev::group_rows_f16(c, a, b);
  }
}
// The same with a in shared memory too. kAdds: to c, which else need not be set.
template <DType kType, bool kAdds, int kTiles>
TAMIS_DEVICE void multiply_group_shared(float (&c)[kTiles][4], uint64_t a, uint64_t b) {
  if constexpr (kType == DType::bf16) {
    dev::group_shared_bf16<kAdds>(c, a, b);
  } else {
    dev::group_shared_f16<kAdds>(c, a, b);
  }
}

}  // namespace tamis
