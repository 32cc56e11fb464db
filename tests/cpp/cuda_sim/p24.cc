// p24: its rows of kernels_cuda.def on the simulator against the double reference, in every layout.
#include <gtest/gtest.h>

#include <string>

#include "cuda_sim/problem.h"

namespace tamis::test {
namespace {

class SpmmP24 : public testing::TestWithParam<SimRow> {
 protected:
  void expect_right(Problem p, int32_t block_tiles, int32_t warps) {
    p.dtype = GetParam().dtype;
    p.format = GetParam().format;
    Case c(p);
    EXPECT_EQ(run(GetParam(), c, lay_out_spmm_p24(c.t16(), p.m, block_tiles, warps), p.seed), "")
        << "n " << p.n << ", k " << p.k << ", m " << p.m << ", sparsity " << p.sparsity << ", "
        << p.parts << " panels, " << block_tiles << " tiles, " << warps << " warps";
  }
};

TEST_P(SpmmP24, ShapesAndDensities) {
  uint64_t seed = 900;
  for (const double sparsity : {0.0, 0.5, 0.7, 0.9, 1.0}) {
    for (const auto& [n, k] : {std::pair{16, 64}, {17, 65}, {1, 8}, {50, 200}, {130, 321}}) {
      for (const int64_t m : {1, 8, 11}) {
        for (const bool integers : {false, true}) {
          expect_right({.n = n,
                        .k = k,
                        .m = m,
                        .sparsity = sparsity,
                        .integers = integers,
                        .bias = integers,
                        .parts = m == 8 ? 2 : 1,
                        .x_padding = m == 8    ? 8
                                     : m == 11 ? 3
                                               : 0,
                        .y_padding = m == 8 ? 5 : 0,
                        .seed = ++seed},
                       2, 2);
        }
      }
    }
  }
}

// Panels over blocks, records over warps, fewer records than warps, and many of a warp.
TEST_P(SpmmP24, Layouts) {
  uint64_t seed = 1000;
  for (const int32_t panels : {1, 2, 3}) {
    for (const int32_t tiles : {1, 3, 8}) {
      for (const int32_t warps : {1, 3}) {
        for (const double sparsity : {0.5, 0.7}) {
          expect_right(
              {.n = 70, .k = 900, .m = 5, .sparsity = sparsity, .parts = panels, .seed = ++seed},
              tiles, warps);
        }
      }
    }
  }
  expect_right({.n = 20, .k = 4096, .m = 16, .sparsity = 0.5, .parts = 1, .seed = ++seed}, 1, 8);
}

TEST_P(SpmmP24, TwoRunsAgreeInEveryBit) {
  Case c({.n = 100,
          .k = 640,
          .m = 9,
          .sparsity = 0.5,
          .dtype = GetParam().dtype,
          .format = GetParam().format,
          .parts = 2,
          .seed = 53});
  EXPECT_EQ(run_twice(GetParam(), c, lay_out_spmm_p24(c.t16(), 9, 2, 2)), "");
}

TEST_P(SpmmP24, SeededBugsAreNoticed) {
  Case c({.n = 40,
          .k = 900,
          .m = 6,
          .sparsity = 0.5,
          .dtype = GetParam().dtype,
          .format = GetParam().format,
          .parts = 2});
  const SpmmT16Plan plan = lay_out_spmm_p24(c.t16(), 6, 2, 3);
  const auto noticed = [&](sim::Faults faults) {
    int count = 0;
    for (uint64_t seed = 1; seed <= 8; ++seed) {
      count += run(GetParam(), c, plan, seed, faults).empty() ? 0 : 1;
    }
    return count;
  };
  EXPECT_EQ(noticed({}), 0);
  EXPECT_GT(noticed({.barrier = 0}), 0) << "after x was written";
  EXPECT_GT(noticed({.barrier = 1}), 0) << "before sums overwrite x";
  EXPECT_GT(noticed({.barrier = 2}), 0) << "before sums are read";
  EXPECT_EQ(noticed({.barrier = 3}), 8) << "before the ticket";
  EXPECT_EQ(noticed({.fence = 0}), 8) << "between the parts and the ticket";
}

INSTANTIATE_TEST_SUITE_P(Rows, SpmmP24, testing::ValuesIn(p24_rows()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace tamis::test
