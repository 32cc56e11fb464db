// kv_fetch on the simulator: lists, maps and rows bit for bit those of the CPU, step after step.
#include <gtest/gtest.h>

#include "fetch_problem.h"
#include "format/matrix.h"
#include "ops/kv_fetch/kv_fetch.cuh"

namespace tamis::test {
namespace {

std::string fetch_on_simulator(const KvFetchArgs& a, uint64_t seed) {
  if (const Status status = check_kv_fetch_cuda(a); !status.ok()) return status.text;
  const FetchParams p{a};
  const auto heads = static_cast<uint32_t>(a.batch * a.kv_heads);
  std::string wrong = sim::launch(
      {.grid = {heads}, .block = {kFetchThreads}, .shared_bytes = kFetchShared, .seed = seed},
      [&] { fetch_maps(p); });
  if (!wrong.empty() || !a.far_keys) return wrong;
  const int64_t blocks = ceil_div(a.index_stride / a.unit, kFetchCopyThreads / 32);
  return sim::launch({.grid = {static_cast<uint32_t>(blocks), heads},
                      .block = {kFetchCopyThreads},
                      .shared_bytes = 0,
                      .seed = seed},
                     [&] { fetch_units(p); });
}

TEST(KvFetch, KeepsThePoolOfTheCpu) {
  uint64_t seed = 0;
  for (const FetchCase& c : kFetchCases) {
    FetchSteps steps(c, ++seed);
    FetchPool got(steps), wanted(steps);
    for (int step = 0; step < (c.slots > 100 ? 3 : 10); ++step) {
      steps.next();
      const bool copies = step % 3 != 2;
      ASSERT_EQ(fetch_on_simulator(got.args(steps, copies), seed + 100 * step), "");
      ASSERT_TRUE(kv_fetch(wanted.args(steps, copies)).ok());
      ASSERT_EQ(got.differs(wanted), nullptr) << "seed " << seed << ", step " << step;
    }
  }
}

// Slots that were read about as many steps ago as ages are told apart, and longer ago.
TEST(KvFetch, CountsAgesUpToTheOldest) {
  const FetchCase c{.slots = 16};
  FetchSteps steps(c, 5);
  FetchPool got(steps), wanted(steps);
  for (FetchPool* pool : {&got, &wanted}) {
    std::fill(pool->clock.span().begin(), pool->clock.span().end(), 5000);
    for (size_t i = 0; i < pool->stamp.size(); ++i) {
      pool->stamp[i] = 5001 - kFetchAges + 8 - static_cast<int32_t>(i % 16);
    }
  }
  for (int step = 0; step < 4; ++step) {
    steps.next();
    ASSERT_EQ(fetch_on_simulator(got.args(steps), 9 + step), "");
    ASSERT_TRUE(kv_fetch(wanted.args(steps)).ok());
    ASSERT_EQ(got.differs(wanted), nullptr) << "step " << step;
  }
}

}  // namespace
}  // namespace tamis::test
