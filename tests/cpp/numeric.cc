// 16-bit floats against their definitions, and field counts against a loop.
#include "base/numeric.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

namespace tamis {
namespace {

// Value of the fields (exponent bits e, mantissa bits m) as IEEE 754 defines them.
double decode(uint32_t bits, int e, int m) {
  const int bias = (1 << (e - 1)) - 1;
  const int exponent = static_cast<int>(bits >> m) & ((1 << e) - 1);
  const double fraction = std::ldexp(bits & ((1u << m) - 1), -m);
  const double sign = ((bits >> (e + m)) & 1u) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << e) - 1) {
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias)
                       : sign * std::ldexp(1 + fraction, exponent - bias);
}

void expect_same(double got, double wanted, uint32_t bits) {
  if (std::isnan(wanted)) {
    EXPECT_TRUE(std::isnan(got)) << bits;
  } else {
    EXPECT_EQ(got, wanted) << bits;
    EXPECT_EQ(std::signbit(got), std::signbit(wanted)) << bits;
  }
}

TEST(Numeric, EveryHalfDecodes) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto h = static_cast<uint16_t>(bits);
    expect_same(f32_from_f16(h), decode(bits, 5, 10), bits);
    expect_same(f32_from_bf16(h), decode(bits, 8, 7), bits);
  }
}

// Every finite value, the midpoint to its successor, and the f32 neighbours of that midpoint.
template <class Encode, class Decode>
void check_rounding(Encode encode, Decode to_f32, uint16_t infinity) {
  for (const uint16_t sign : {uint16_t{0}, uint16_t{0x8000}}) {
    for (uint16_t h = 0; h < infinity; ++h) {
      const auto low = static_cast<uint16_t>(h | sign), high = static_cast<uint16_t>(low + 1);
      const float x = to_f32(low);
      EXPECT_EQ(encode(x), low);
      // Past the largest finite value the successor is where the exponent range would go on.
      const double below = to_f32(static_cast<uint16_t>(low - 1));
      const double next = high == (infinity | sign) ? x + (x - below) : to_f32(high);
      const auto middle = static_cast<float>((double{x} + next) / 2);
      if (static_cast<double>(middle) != (double{x} + next) / 2) continue;  // bf16 denormal end
      EXPECT_EQ(encode(middle), (low & 1) == 0 ? low : high) << h;
      EXPECT_EQ(encode(std::nextafterf(middle, x)), low) << h;
      EXPECT_EQ(encode(std::nextafterf(middle, static_cast<float>(next))), high) << h;
    }
    const float inf = sign != 0 ? -INFINITY : INFINITY;
    EXPECT_EQ(encode(inf), infinity | sign);
  }
  EXPECT_TRUE(std::isnan(to_f32(encode(std::numeric_limits<float>::quiet_NaN()))));
  // A NaN whose payload sits in the low bits must not become Inf.
  EXPECT_TRUE(std::isnan(to_f32(encode(std::bit_cast<float>(0x7f800001u)))));
}

TEST(Numeric, HalfRoundsToNearestEven) {
  check_rounding(f16_from_f32, f32_from_f16, 0x7c00);
}
TEST(Numeric, Bf16RoundsToNearestEven) {
  check_rounding(bf16_from_f32, f32_from_bf16, 0x7f80);
}

TEST(Numeric, FieldCounts) {
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 2000; ++trial) {
    const uint64_t x = trial == 0 ? ~uint64_t{0} : random() & (trial % 2 != 0 ? random() : ~0ull);
    for (const int width : {2, 4, 8, 16, 32, 64}) {
      uint64_t wanted = 0;
      for (int bit = 0; bit < 64; ++bit) {
        if (((x >> bit) & 1) != 0) wanted += uint64_t{1} << (width == 64 ? 0 : bit / width * width);
      }
      ASSERT_EQ(field_counts(x, width), wanted) << std::hex << x << " in fields of " << width;
    }
    ASSERT_EQ(popcount(x), std::popcount(x));
  }
}

}  // namespace
}  // namespace tamis
