// Arithmetic and roundings of f32, f16 and bf16: a part of dev.h, which includes it.
#pragma once

#include <cstdint>

namespace tamis::dev {

// ---- pairs of f16

TAMIS_DEVICE uint32_t mul_f16x2(uint32_t a, uint32_t b) {
  uint32_t out;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}
TAMIS_DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
}
// The larger and the smaller of each two; the other one of a NaN.
TAMIS_DEVICE uint32_t max_f16x2(uint32_t a, uint32_t b) {
  uint32_t out;
  asm("max.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}
TAMIS_DEVICE uint32_t min_f16x2(uint32_t a, uint32_t b) {
  uint32_t out;
  asm("min.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}

// fma_f16x2 of bf16.
TAMIS_DEVICE uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
}

// ---- f32

TAMIS_DEVICE float exp2(float x) {  // within 2 units in the last place; 0 for -inf
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
TAMIS_DEVICE float max(float a, float b) {  // the other one of a NaN
  return ::fmaxf(a, b);
}
TAMIS_DEVICE float log2(float x) {
  return ::log2f(x);
}
TAMIS_DEVICE float divide(float a, float b) {  // rounded to nearest
  return __fdiv_rn(a, b);
}
TAMIS_DEVICE float reciprocal(float x) {  // within a unit in the last place
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
TAMIS_DEVICE float sqrt(float x) {  // rounded to nearest
  return __fsqrt_rn(x);
}
TAMIS_DEVICE float fma(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
// Products and sums that are not joined into one rounding.
TAMIS_DEVICE float mul(float a, float b) {
  return __fmul_rn(a, b);
}
TAMIS_DEVICE float add(float a, float b) {
  return __fadd_rn(a, b);
}
TAMIS_DEVICE int32_t round_to_int(float x) {  // to even
  return __float2int_rn(x);
}
TAMIS_DEVICE uint32_t bits_of(float x) {
  return __float_as_uint(x);
}
TAMIS_DEVICE float float_of(uint32_t bits) {
  return __uint_as_float(bits);
}

// ---- 16-bit floats and f32, rounded to nearest even

TAMIS_DEVICE float bf16_to_f32(uint16_t h) {
  return __uint_as_float(uint32_t{h} << 16);
}
TAMIS_DEVICE float f16_to_f32(uint16_t h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
TAMIS_DEVICE uint16_t f32_to_bf16(float f) {
  uint16_t h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
TAMIS_DEVICE uint16_t f32_to_f16(float f) {
  uint16_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}

// Two f32 as a pair, `low` in the low half.
TAMIS_DEVICE uint32_t pack_f16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
TAMIS_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

}  // namespace tamis::dev
