// Bugs put in on purpose: each must be noticed, or the conformance test proves nothing.
#include <gtest/gtest.h>

#include "cuda_sim/problem.h"

namespace tamis::test {
namespace {

class Faults : public testing::TestWithParam<SimRow> {
 protected:
  // Six records per warp over four stages; x is shared by eight warps.
  Faults()
      : case_({.n = 150,
               .k = 64 * 12,
               .m = 6,
               .sparsity = 0.4,
               .dtype = GetParam().dtype,
               .format = GetParam().format}),
        plan_(lay_out_spmm_t16(case_.t16(), 6, 2, 1)) {}

  // How many of eight orders of the warps notice.
  int noticed(const sim::Faults& faults) { return noticed(faults, plan_); }
  int noticed(const sim::Faults& faults, const SpmmCudaPlan& plan) {
    return test::noticed(GetParam(), case_, plan, faults);
  }

  Case case_;
  SpmmCudaPlan plan_;
};

TEST_P(Faults, NoneIsRight) {
  EXPECT_EQ(noticed({}), 0);
}

TEST_P(Faults, MissingBarrier) {
  EXPECT_GT(noticed({.barrier = 0}), 0) << "after x was copied";
  EXPECT_GT(noticed({.barrier = 1}), 0) << "before sums overwrite x";
  EXPECT_GT(noticed({.barrier = 2}), 0) << "before sums are read";
}

// Two blocks share a tile: the last to arrive adds up what both left.
TEST_P(Faults, MissingOrderBetweenBlocks) {
  const SpmmCudaPlan plan = lay_out_spmm_t16(case_.t16(), 6, 2, 2);
  EXPECT_EQ(noticed({}, plan), 0);
  EXPECT_EQ(noticed({.fence = 0}, plan), 8);
  EXPECT_EQ(noticed({.barrier = 3}, plan), 8) << "before the ticket";
}

// Rows whose records come through shared memory; others go straight to registers.
class RingFaults : public Faults {};

TEST_P(Faults, MissingWaitForX) {
  EXPECT_EQ(noticed({.wait = 0}), 8);
}

TEST_P(RingFaults, MissingWait) {
  for (const int wait : {1, 2, 4, 6}) {
    EXPECT_EQ(noticed({.wait = wait}), 8) << "wait " << wait;
  }
}

// The buffer keeps what it held: nothing at first, an older record later.
TEST_P(Faults, StaleBuffer) {
  for (const int copy : {0, 40, 200}) {
    EXPECT_EQ(noticed({.copy = copy}), 8) << "copy " << copy;
  }
}

TEST_P(RingFaults, RecordLongerThanItsStage) {
  SpmmCudaPlan small = plan_;
  small.stage_bytes -= 128;
  small.shared_bytes -= 128 * kBlockWarps * kStages;
  EXPECT_EQ(noticed({}, small), 8);
}

TEST_P(RingFaults, SharedMemoryTooSmall) {
  SpmmCudaPlan small = plan_;
  small.shared_bytes -= plan_.stage_bytes / 2;
  EXPECT_EQ(noticed({}, small), 8);
}

// Eight parts of a slice: x, then the sums.
TEST(GapFaults, MissingBarrier) {
  for (const SimRow& row : gap_rows()) {
    Case c({.n = 70, .k = 600, .m = 3, .sparsity = 0.4, .dtype = row.dtype, .format = row.format});
    const SpmmCudaPlan plan = lay_out_spmm_gap(c.t16(), 3, 8);
    for (const int barrier : {-1, 0, 1}) {
      int noticed = 0;
      for (uint64_t seed = 1; seed <= 8; ++seed) {
        noticed += run(row, c, plan, seed, {.barrier = barrier}).empty() ? 0 : 1;
      }
      EXPECT_EQ(noticed > 0, barrier >= 0) << row.name << ", barrier " << barrier;
    }
  }
}

TEST(GapFaults, MissingOrderBetweenBlocks) {
  for (const SimRow& row : gap_rows()) {
    Case c({.n = 70, .k = 600, .m = 3, .sparsity = 0.4, .dtype = row.dtype, .format = row.format});
    const SpmmCudaPlan plan = lay_out_spmm_gap(c.t16(), 3, 4);
    ASSERT_EQ(plan.splits, 2);
    EXPECT_EQ(run(row, c, plan, 1), "");
    EXPECT_NE(run(row, c, plan, 1, {.fence = 0}), "") << row.name;
    EXPECT_NE(run(row, c, plan, 1, {.barrier = 2}), "") << row.name << ": before the ticket";
  }
}

TEST(GapFaults, SharedMemoryTooSmall) {
  for (const SimRow& row : gap_rows()) {
    Case c({.n = 70, .k = 600, .m = 1, .sparsity = 0.4, .dtype = row.dtype, .format = row.format});
    SpmmCudaPlan small = lay_out_spmm_gap(c.t16(), 1, 8);
    small.shared_bytes -= 16;
    EXPECT_NE(run(row, c, small, 1), "");
  }
}

std::vector<SimRow> ring_rows() {
  return sim_rows_of([](PackedFormat f) { return f == PackedFormat::t16; });
}

INSTANTIATE_TEST_SUITE_P(Rows, RingFaults, testing::ValuesIn(ring_rows()),
                         [](const auto& info) { return std::string(info.param.name); });
INSTANTIATE_TEST_SUITE_P(Rows, Faults, testing::ValuesIn(tile_rows()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace tamis::test
