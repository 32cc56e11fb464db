// Activations on vectors of f32.
//
// Error against the exact function of the same y: silu and gelu_tanh 4 units in the last place of
// the sigmoid; gelu 1.5e-7 * |y|, that of the polynomial (Abramowitz and Stegun 7.1.26). Plus the
// rounding of the result. NaN stays NaN.
//
// Included after a base/simd/lanes_<isa>.h.
#pragma once

#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

// 1 / (1 + e^-v)
TAMIS_INLINE lanes::F32 sigmoid(lanes::F32 v) {
  const lanes::F32 one = lanes::splat(1.0f);
  const lanes::F32 e = lanes::exp(lanes::mul(lanes::magnitude(v), lanes::splat(-1.0f)));
  return lanes::div(lanes::where_negative(v, e, one), simd::add(one, e));
}

// The share of a normal distribution below v: half the complementary error function.
TAMIS_INLINE lanes::F32 normal_below(lanes::F32 v) {
  const lanes::F32 one = lanes::splat(1.0f);
  const lanes::F32 z = lanes::mul(lanes::magnitude(v), lanes::splat(0.70710678f));
  const lanes::F32 t = lanes::div(one, simd::fma(lanes::splat(0.3275911f), z, one));
  lanes::F32 p = lanes::splat(1.061405429f);
  p = simd::fma(p, t, lanes::splat(-1.453152027f));
  p = simd::fma(p, t, lanes::splat(1.421413741f));
  p = simd::fma(p, t, lanes::splat(-0.284496736f));
  p = simd::fma(p, t, lanes::splat(0.254829592f));
  p = lanes::mul(lanes::mul(p, t), lanes::splat(0.5f));
  const lanes::F32 tail =
      lanes::mul(p, lanes::exp(lanes::mul(lanes::mul(z, z), lanes::splat(-1.0f))));
  return lanes::where_negative(v, tail, lanes::sub(one, tail));
}

template <Activation kActivation>
TAMIS_INLINE lanes::F32 activate(lanes::F32 y) {
  switch (kActivation) {
    case Activation::none:
      return y;
    case Activation::relu:
      return lanes::max(simd::zero(), y);
    case Activation::gelu:
      return lanes::mul(y, normal_below(y));
    case Activation::gelu_tanh: {  // 0.5 y (1 + tanh u) = y sigmoid(2u)
      const lanes::F32 cubic = lanes::mul(lanes::mul(y, y), lanes::splat(0.044715f));
      const lanes::F32 u = lanes::mul(simd::fma(cubic, y, y), lanes::splat(0.79788456f));
      return lanes::mul(y, sigmoid(simd::add(u, u)));
    }
    case Activation::silu:
      return lanes::mul(y, sigmoid(y));
  }
}

template <Activation kActivation, class T>
TAMIS_INLINE void activate_rows(const SpmmArgs& a, int64_t begin, int64_t end) {
  for (int64_t t = 0; t < a.m; ++t) {
    T* y = static_cast<T*>(a.y) + t * a.y_stride;
    const T* by =
        a.multiplier ? static_cast<const T*>(a.multiplier) + t * a.multiplier_stride : nullptr;
    for (int64_t r = begin; r < end; r += simd::kLanes) {
      const int n = static_cast<int>(end - r < simd::kLanes ? end - r : simd::kLanes);
      lanes::F32 v = activate<kActivation>(simd::load(y + r, n));
      if (by) v = lanes::mul(v, simd::load(by + r, n));
      simd::store(v, y + r, n);
    }
  }
}

template <class T>
TAMIS_INLINE void activate_as(const SpmmArgs& a, int64_t begin, int64_t end) {
  switch (a.activation) {
    case Activation::none:
      return activate_rows<Activation::none, T>(a, begin, end);
    case Activation::relu:
      return activate_rows<Activation::relu, T>(a, begin, end);
    case Activation::gelu:
      return activate_rows<Activation::gelu, T>(a, begin, end);
    case Activation::gelu_tanh:
      return activate_rows<Activation::gelu_tanh, T>(a, begin, end);
    case Activation::silu:
      return activate_rows<Activation::silu, T>(a, begin, end);
  }
}

TAMIS_INLINE void activate_any(const SpmmArgs& a, int64_t begin, int64_t end) {
  switch (a.x_dtype) {
    case DType::f32:
      return activate_as<float>(a, begin, end);
    case DType::f16:
      return activate_as<F16>(a, begin, end);
    default:
      return activate_as<BF16>(a, begin, end);
  }
}

}  // namespace
}  // namespace tamis
