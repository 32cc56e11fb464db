// kv_select on the simulator: lists bit for bit those of the CPU, guard pages round every array.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "guarded.h"
#include "ops/kv_select/select.cuh"
#include "ops/kv_select/share.cuh"

namespace tamis::test {
namespace {

struct Choice {
  int64_t units, k, sink = 0, recent = 0, page = 1;
  bool begin = false, budget = false;
  int levels = 0;  // that many different scores; 0: all differ
  int64_t heads = 3;
  bool chunks = false;  // as more units than registers hold
  double top_p = 0;
};

void expect_choice(const Choice& c, uint64_t seed) {
  std::mt19937_64 random(seed);
  const int64_t heads = c.heads;
  Guarded<float> scores(static_cast<size_t>(heads * c.units));
  for (float& s : scores.span()) {
    s = std::normal_distribution<float>()(random);
    if (c.levels > 0) s = static_cast<float>(static_cast<int>(random() % c.levels) - c.levels / 2);
    if (c.levels > 0 && s == 0 && random() % 2) s = -0.0f;
    if (random() % 50 == 0) s = std::nanf("");
    if (random() % 50 == 0) s = -std::numeric_limits<float>::infinity();
  }
  std::vector<int32_t> begin, budget;
  for (int64_t h = 0; h < heads; ++h) {
    begin.push_back(static_cast<int32_t>(h * c.units / 4));
    budget.push_back(static_cast<int32_t>(h == 0 ? 0 : c.k / h));
  }
  if (c.top_p > 0 && seed % 2 == 0) {  // as attention is: over many exponents
    for (float& s : scores.span()) s = std::exp(4 * s);
  }
  const int64_t most = c.top_p > 0 ? c.units : std::max(c.k, c.sink + c.recent);
  const int64_t width = std::min(c.units, most) * c.page;
  Guarded<int32_t> got(static_cast<size_t>(heads * width)),
      wanted(static_cast<size_t>(heads * width));
  std::fill(got.span().begin(), got.span().end(), -1);
  std::fill(wanted.span().begin(), wanted.span().end(), -1);
  int32_t counts[2][3] = {};
  KvSelectArgs args{.heads = heads,
                    .units = c.units,
                    .scores = scores.data(),
                    .budget = c.budget ? budget.data() : nullptr,
                    .k = c.k,
                    .top_p = c.top_p,
                    .sink = c.sink,
                    .recent = c.recent,
                    .page = c.page,
                    .begin = c.begin ? begin.data() : nullptr,
                    .index = wanted.data(),
                    .index_stride = width,
                    .count = counts[0]};
  ASSERT_TRUE((c.top_p > 0 ? kv_select(args) : kv_select_reference(args)).ok());
  args.index = got.data();
  args.count = counts[1];
  ASSERT_TRUE(check_select_cuda(args).ok());
  const SelectParams params{args};
  ASSERT_EQ(sim::launch({.grid = {static_cast<uint32_t>(heads)},
                         .block = {kSelectThreads},
                         .shared_bytes = c.top_p > 0 ? kShareShared : kSelectShared,
                         .seed = seed},
                        [&] {
                          if (c.top_p > 0) {
                            c.chunks ? select_share<false>(share_params(args))
                                     : select_share<true>(share_params(args));
                            return;
                          }
                          c.units <= kSelectAtOnce && !c.chunks ? select_units<true>(params)
                                                                : select_units<false>(params);
                        }),
            "");
  const std::string what = "units " + std::to_string(c.units) + ", k " + std::to_string(c.k) +
                           ", levels " + std::to_string(c.levels) + ", seed " +
                           std::to_string(seed);
  for (int64_t h = 0; h < heads; ++h) {
    ASSERT_EQ(counts[1][h], counts[0][h]) << what;
    for (int64_t i = 0; i < counts[0][h]; ++i) {
      ASSERT_EQ(got[h * width + i], wanted[h * width + i]) << what << ", head " << h << ", " << i;
    }
  }
}

TEST(KvSelect, ChoosesAsTheCpuDoes) {
  uint64_t seed = 70;
  for (const int levels : {0, 1, 2, 9}) {
    expect_choice({.units = 3000, .k = 170, .levels = levels}, ++seed);
    expect_choice({.units = 5000, .k = 4700, .levels = levels}, ++seed);
    expect_choice({.units = 3000, .k = 170, .levels = levels, .chunks = true}, ++seed);
    expect_choice({.units = 1, .k = 1, .levels = levels}, ++seed);
    expect_choice({.units = 40, .k = 0, .levels = levels}, ++seed);
    expect_choice({.units = 40, .k = 90, .levels = levels}, ++seed);
    expect_choice(
        {.units = 700, .k = 130, .sink = 4, .recent = 50, .begin = true, .levels = levels}, ++seed);
    expect_choice({.units = 200, .k = 12, .recent = 30, .levels = levels}, ++seed);
    expect_choice(
        {.units = 300, .k = 60, .page = 16, .begin = true, .budget = true, .levels = levels},
        ++seed);
  }
  expect_choice({.units = kSelectAtOnce + 777, .k = 1500, .heads = 1}, ++seed);
}

TEST(KvSelect, TakesTheShareThatTheCpuDoes) {
  uint64_t seed = 170;
  for (const int levels : {0, 1, 9}) {
    for (const double p : {1e-3, 0.3, 0.975, 1.0}) {
      expect_choice({.units = 3000, .levels = levels, .top_p = p}, ++seed);
      expect_choice({.units = 2500, .levels = levels, .chunks = true, .top_p = p}, ++seed);
      expect_choice({.units = 1, .levels = levels, .top_p = p}, ++seed);
      expect_choice(
          {.units = 700, .sink = 4, .recent = 50, .begin = true, .levels = levels, .top_p = p},
          ++seed);
      expect_choice({.units = 200, .recent = 30, .page = 16, .levels = levels, .top_p = p}, ++seed);
    }
  }
  expect_choice({.units = 33000, .heads = 1, .chunks = true, .top_p = 0.9}, ++seed);
}

}  // namespace
}  // namespace tamis::test
