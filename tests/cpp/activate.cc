// The end of a fused product against its definition in double: every function, dtype, ISA level and
// tail, up to the page's end.
#include "ops/spmm/activate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "base/numeric.h"
#include "guarded.h"

namespace tamis {
namespace {

constexpr Activation kAll[] = {Activation::none, Activation::relu, Activation::gelu,
                               Activation::gelu_tanh, Activation::silu};

double exact(Activation f, double y) {
  switch (f) {
    case Activation::none:
      return y;
    case Activation::relu:
      return y > 0 ? y : 0;
    case Activation::gelu:
      return y * 0.5 * std::erfc(-y * std::sqrt(0.5));
    case Activation::gelu_tanh: {
      const double u = std::sqrt(2 / std::acos(-1.0)) * (y + 0.044715 * y * y * y);
      return y / (1 + std::exp(-2 * u));
    }
    case Activation::silu:
      return y / (1 + std::exp(-y));
  }
  return 0;
}

struct Float {
  using T = float;
  static constexpr DType dtype = DType::f32;
  static constexpr double unit = 0x1p-24, least = 0;
  static float from(float v) { return v; }
  static float to(float v) { return v; }
};
struct Half {
  using T = uint16_t;
  static constexpr DType dtype = DType::f16;
  static constexpr double unit = 0x1p-11, least = 0x1p-25;
  static uint16_t from(float v) { return f16_from_f32(v); }
  static float to(uint16_t v) { return f32_from_f16(v); }
};
struct Brain {
  using T = uint16_t;
  static constexpr DType dtype = DType::bf16;
  static constexpr double unit = 0x1p-8, least = 0;
  static uint16_t from(float v) { return bf16_from_f32(v); }
  static float to(uint16_t v) { return f32_from_bf16(v); }
};

template <class D>
void check(ActivateKernel run, Activation f, bool multiplied, int64_t n) {
  constexpr int64_t kTokens = 3, kGap = 5;  // columns of other threads' work on both sides
  const int64_t begin = kGap, end = begin + n, stride = n + kGap;
  using T = typename D::T;
  test::Guarded<T> y(static_cast<size_t>(kTokens * stride)), by(y.size());
  std::mt19937 random(static_cast<unsigned>(n));
  std::normal_distribution<float> normal(0, 4);
  for (size_t i = 0; i < y.size(); ++i) {
    y[i] = D::from(normal(random));
    by[i] = D::from(normal(random));
  }
  const test::Guarded<T> before{std::span<const T>(y.span())};
  SpmmArgs a;
  a.x_dtype = D::dtype;
  a.m = kTokens;
  a.y = y.data();
  a.y_stride = a.multiplier_stride = stride;
  a.activation = f;
  a.multiplier = multiplied ? by.data() : nullptr;
  run(a, begin, end);
  for (size_t i = 0; i < y.size(); ++i) {
    const auto column = static_cast<int64_t>(i) % stride;
    if (column < begin) {
      ASSERT_EQ(y[i], before[i]) << "touched column " << column;
      continue;
    }
    const double x = D::to(before[i]), factor = multiplied ? D::to(by[i]) : 1;
    const double wanted = exact(f, x) * factor;
    const double error = f == Activation::gelu ? 1.5e-7 * std::abs(x * factor) : 0;
    // 2u of gelu_tanh errs by a few units of itself, which its sigmoid turns into as many times u.
    const double units = f == Activation::gelu_tanh ? 6 + 2 * std::abs(x * x * x) : 6;
    ASSERT_NEAR(D::to(y[i]), wanted,
                error + std::abs(wanted) * (units * 0x1p-24 + D::unit) + D::least + 1e-35)
        << "f " << static_cast<int>(f) << ", n " << n << ", y " << x << ", column " << column;
  }
}

TEST(Activate, MatchesItsDefinition) {
  for (const IsaBits level : {IsaBits{0}, isa::avx2, isa::avx512, isa::neon}) {
    if ((level & host_isa()) != level) continue;
    const ActivateKernel run = choose_activate(level);
    for (const Activation f : kAll) {
      for (const bool multiplied : {false, true}) {
        for (const int64_t n : {1, 7, 8, 9, 15, 16, 17, 33, 200}) {
          check<Float>(run, f, multiplied, n);
          check<Half>(run, f, multiplied, n);
          check<Brain>(run, f, multiplied, n);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(Activate, KeepsNaNAndEnds) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const IsaBits level : {IsaBits{0}, isa::avx2, isa::avx512, isa::neon}) {
    if ((level & host_isa()) != level) continue;
    for (const Activation f : kAll) {
      float y[] = {std::numeric_limits<float>::quiet_NaN(), inf, 200.0f, -200.0f, 0.0f};
      SpmmArgs a;
      a.m = 1;
      a.y = y;
      a.activation = f;
      choose_activate(level)(a, 0, 5);
      EXPECT_TRUE(std::isnan(y[0]));
      EXPECT_EQ(y[1], inf);
      EXPECT_EQ(y[2], 200.0f);
      EXPECT_NEAR(y[3], f == Activation::none ? -200.0f : 0.0f, 1e-30f);
      EXPECT_EQ(y[4], 0.0f);
    }
  }
}

}  // namespace
}  // namespace tamis
