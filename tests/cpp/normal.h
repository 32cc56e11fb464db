// Normal numbers at a tenth of what std::normal_distribution takes, which was a third of some
// tests.
#pragma once

#include <array>
#include <random>

namespace tamis::test {

// One of 2^14 numbers that std::normal_distribution made.
inline float normal(std::mt19937_64& random) {
  static const auto numbers = [] {
    std::array<float, 1 << 14> all;
    std::mt19937_64 source;
    std::normal_distribution<float> distribution;
    for (float& x : all) x = distribution(source);
    return all;
  }();
  return numbers[random() >> 50];
}

}  // namespace tamis::test
