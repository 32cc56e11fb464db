// Every encoder gives the bits of std::nearbyint(w / divisor), at any length, up to the page's end,
// and every encoder of groups those of the portable one.
#include "format/encode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
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

template <class T, class FromF32>
void check_groups(DType dtype, FromF32 from_f32) {
  std::mt19937 random(11);
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float edges[] = {0.0f, -0.0f, 1e-9f, -3e-6f, 65504.0f, -60000.0f, kInf, std::nanf("")};
  for (int turn = 0; turn < 4000; ++turn) {
    const int n = turn % 2 ? 16 : 32, count = turn % 8 + 1;
    const float highest = turn % 4 < 2 ? 15.0f : 255.0f;
    std::normal_distribution<float> normal(turn % 3 ? 0.0f : 2.0f, turn % 5 ? 1.0f : 1e-6f);
    std::vector<T> stored;
    std::vector<uint8_t> kept;
    for (int j = 0; j < n * count; ++j) {
      const bool odd = turn % 7 == 0 && random() % 8 == 0;
      stored.push_back(from_f32(odd ? edges[random() % 8] : normal(random)));
      kept.push_back(random() % 4 != 0 ? static_cast<uint8_t>(random() % 255 + 1) : 0);
    }
    int64_t at[kEncodeGroups];
    for (int i = 0; i < count; ++i) at[i] = (count - 1 - i) * n;
    const test::Guarded<T> w{std::span<const T>(stored)};
    const test::Guarded<uint8_t> keep{std::span<const uint8_t>(kept)};
    const GroupSource row{
        .w = w.data(), .dtype = dtype, .keep = turn % 3 == 1 ? nullptr : keep.data(), .n = n};
    const auto size = static_cast<size_t>(n * count), pairs = static_cast<size_t>(2 * count);
    test::Guarded<uint8_t> wanted(size), codes(size);
    test::Guarded<uint16_t> wanted_scales(pairs), scales(pairs);
    const bool fits =
        encode_groups_scalar(row, at, count, highest, wanted.data(), wanted_scales.data());
    ASSERT_EQ(host_encode_groups()(row, at, count, highest, codes.data(), scales.data()), fits);
    if (!fits) continue;
    for (size_t j = 0; j < pairs; ++j) ASSERT_EQ(scales[j], wanted_scales[j]) << "turn " << turn;
    for (size_t j = 0; j < size; ++j)
      ASSERT_EQ(codes[j], wanted[j]) << "turn " << turn << ", " << j;
  }
}

TEST(EncodeGroups, TheHostsIsTheSame) {
  check_groups<float>(DType::f32, [](float f) { return f; });
  check_groups<uint16_t>(DType::f16, f16_from_f32);
  check_groups<uint16_t>(DType::bf16, bf16_from_f32);
}

}  // namespace
}  // namespace tamis
