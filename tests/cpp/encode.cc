// Every encoder gives the bits of std::nearbyint(w / divisor), at any length, up to the page's end.
#include "format/encode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "base/numeric.h"
#include "guarded.h"

namespace tamis {
namespace {

// Weights of which every third lies halfway between two codes.
std::vector<float> weights(int n, float divisor, std::mt19937& random) {
  std::uniform_int_distribution<int> code(-127, 126);
  std::uniform_real_distribution<float> between(-127, 127);
  std::vector<float> w;
  for (int j = 0; j < n; ++j) {
    const float steps = j % 3 == 0 ? static_cast<float>(code(random)) + 0.5f : between(random);
    w.push_back(steps * divisor);
  }
  return w;
}

template <class T, class FromF32, class ToF32>
void check(Encode encode, DType dtype, FromF32 from_f32, ToF32 to_f32) {
  std::mt19937 random(7);
  for (int n = 1; n < 140; ++n) {
    for (const float divisor : {1.0f, 0.25f, 0.01f}) {
      const std::vector<float> wanted = weights(n, divisor, random);
      std::vector<T> stored;
      for (const float w : wanted) stored.push_back(from_f32(w));
      const test::Guarded<T> w{std::span<const T>(stored)};
      test::Guarded<int8_t> codes(static_cast<size_t>(n));
      encode(w.data(), dtype, n, divisor, codes.data());
      for (int j = 0; j < n; ++j) {
        ASSERT_EQ(codes[j], std::nearbyint(to_f32(stored[j]) / divisor))
            << "n " << n << ", element " << j << ", divisor " << divisor;
      }
    }
  }
}

void check_all(Encode encode) {
  const auto same = [](float f) { return f; };
  check<float>(encode, DType::f32, same, same);
  check<uint16_t>(encode, DType::f16, f16_from_f32, f32_from_f16);
  check<uint16_t>(encode, DType::bf16, bf16_from_f32, f32_from_bf16);
}

TEST(Encode, RoundsToEven) {
  check_all(encode_scalar);
}

TEST(Encode, TheHostsIsTheSame) {
  check_all(host_encode());
}

}  // namespace
}  // namespace tamis
