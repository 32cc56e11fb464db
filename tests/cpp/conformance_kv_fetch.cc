// kv_fetch against sorting, step after step: lists, maps and rows bit for bit.
#include <gtest/gtest.h>

#include "base/parallel.h"
#include "fetch_problem.h"

namespace tamis::test {
namespace {

TEST(KvFetch, KeepsThePoolThatSortingKeeps) {
  uint64_t seed = 0;
  for (const FetchCase& c : kFetchCases) {
    for (const int threads : {1, 3}) {
      set_num_threads(threads);
      FetchSteps steps(c, ++seed);
      FetchPool got(steps), wanted(steps);
      for (int step = 0; step < 40; ++step) {
        steps.next();
        ASSERT_TRUE(kv_fetch(got.args(steps)).ok());
        ASSERT_TRUE(kv_fetch_reference(wanted.args(steps)).ok());
        ASSERT_EQ(got.differs(wanted), nullptr) << "seed " << seed << ", step " << step;
      }
    }
  }
  set_num_threads(0);
}

TEST(KvFetch, FindsWhatItWasAskedForInThePool) {
  const FetchCase c{.unit = 4};
  FetchSteps steps(c, 7);
  FetchPool pool(steps);
  for (int step = 0; step < 20; ++step) {
    steps.next();
    ASSERT_TRUE(kv_fetch(pool.args(steps)).ok());
    for (int64_t h = 0; h < steps.heads(); ++h) {
      ASSERT_EQ(pool.near_count[static_cast<size_t>(h)], steps.count[static_cast<size_t>(h)]);
      for (int64_t i = 0; i < steps.count[static_cast<size_t>(h)]; ++i) {
        const auto at = static_cast<size_t>(h * c.width * c.unit + i);
        const auto near = static_cast<size_t>(h * c.slots * c.unit + pool.near[at]);
        const auto far = static_cast<size_t>(h * steps.tokens() + steps.index[at]);
        ASSERT_EQ(std::memcmp(&pool.keys[near], &steps.keys[far], sizeof(FetchRow)), 0);
        ASSERT_EQ(std::memcmp(&pool.values[near], &steps.values[far], sizeof(FetchRow)), 0);
      }
    }
  }
}

TEST(KvFetch, RefusesWhatItCannotDoAndChangesNothing) {
  FetchSteps steps({}, 1);
  FetchPool pool(steps), before(steps);
  steps.next();
  steps.count[4] = 2;
  steps.index[static_cast<size_t>(4 * steps.c.width)] = 0;
  steps.index[static_cast<size_t>(4 * steps.c.width + 1)] = 50;
  const Status status = kv_fetch(pool.args(steps));
  EXPECT_EQ(status.code, Code::invalid_argument);
  EXPECT_NE(std::string(status.text).find("wanted 0 to 49"), std::string::npos) << status.text;
  EXPECT_EQ(std::memcmp(pool.slot_of.data(), before.slot_of.data(), 4 * pool.slot_of.size()), 0);
  EXPECT_EQ(std::memcmp(pool.clock.data(), before.clock.data(), 4 * pool.clock.size()), 0);
  KvFetchArgs args = pool.args(steps);
  args.slots = 11;
  EXPECT_EQ(check_kv_fetch(args).code, Code::invalid_argument);
  args = pool.args(steps);
  args.unit = 5;
  EXPECT_EQ(check_kv_fetch(args).code, Code::invalid_argument);
  args = pool.args(steps);
  args.clock = nullptr;
  EXPECT_EQ(check_kv_fetch(args).code, Code::invalid_argument);
}

}  // namespace
}  // namespace tamis::test
