// d24: its rows of kernels_cuda.def on the simulator against the double reference, in every layout.
#include <gtest/gtest.h>

#include <array>
#include <string>

#include "cuda_sim/rows24.h"

namespace tamis::test {
namespace {

class SpmmD24 : public Row24Test {
 protected:
  void expect_right(Problem p, int32_t block_pairs, int32_t warps) {
    Case c = case_of(p);
    const SpmmT16Plan plan = lay_out_spmm_d24(c.t16(), p.m, block_pairs, warps);
    EXPECT_EQ(run(GetParam(), c, plan, p.seed), "")
        << "n " << p.n << ", k " << p.k << ", m " << p.m << ", sparsity " << p.sparsity << ", "
        << p.parts << " panels, " << block_pairs << " pairs, " << warps << " warps";
  }
};

TEST_P(SpmmD24, ShapesAndDensities) {
  uint64_t seed = 900;
  for (const double sparsity : {0.0, 0.5, 0.7, 1.0}) {
    for (const auto& [n, k] : {std::pair{32, 64}, {33, 65}, {1, 8}, {50, 200}, {130, 321}}) {
      for (const int64_t m : {1, 40, 43, 64}) {
        const bool integers = m % 2 == 0;
        expect_right({.n = n,
                      .k = k,
                      .m = m,
                      .sparsity = sparsity,
                      .integers = integers,
                      .bias = integers,
                      .parts = m == 40 ? 2 : 1,
                      .x_padding = m == 40   ? 8
                                   : m == 43 ? 3
                                             : 0,
                      .y_padding = m == 40 ? 5 : 0,
                      .seed = ++seed},
                     2, 2);
      }
    }
  }
}

// Panels over blocks, records over warps, fewer records than warps, and many of a warp.
TEST_P(SpmmD24, Layouts) {
  uint64_t seed = 1000;
  for (const int32_t panels : {1, 2, 3}) {
    for (const auto& [pairs, warps] : {std::pair{1, 1}, {3, 1}, {4, 3}, {1, 8}, {12, 1}}) {
      for (const int64_t m : {37, 48, 57}) {
        expect_right({.n = 140, .k = 900, .m = m, .sparsity = 0.5, .parts = panels, .seed = ++seed},
                     pairs, warps);
      }
    }
  }
}

TEST_P(SpmmD24, WrittenOutIsTheWeight) {
  const Expansion how{.params = &expand_d24_params,
                      .blocks = [](int64_t n) { return 4 * d24::row_pairs(n); },
                      .run = [](const ExpandP24Params& p, bool) { expand_d24(p); }};
  uint64_t seed = 6000;
  for (const double sparsity : {0.0, 0.5, 0.95, 1.0}) {
    for (const auto& shape : {std::array<int64_t, 4>{32, 64, 1, 0},
                              {17, 65, 1, 3},
                              {3, 5, 1, 0},
                              {50, 904, 3, 8},
                              {40, 1808, 1, 4}}) {
      expect_written_out(how, shape, sparsity, ++seed);
    }
  }
}

TEST_P(SpmmD24, TwoRunsAgreeInEveryBit) {
  Case c = case_of({.n = 100, .k = 640, .m = 41, .sparsity = 0.5, .parts = 2, .seed = 53});
  EXPECT_EQ(run_twice(GetParam(), c, lay_out_spmm_d24(c.t16(), 41, 2, 2)), "");
  EXPECT_EQ(run_twice(GetParam(), c, lay_out_spmm_d24(c.t16(), 41, 4, 1)), "");
}

TEST_P(SpmmD24, SeededBugsAreNoticed) {
  Case c = case_of({.n = 70, .k = 900, .m = 38, .sparsity = 0.5, .parts = 2});
  SpmmT16Plan plan = lay_out_spmm_d24(c.t16(), 38, 2, 3);
  const auto noticed = [&](const sim::Faults& faults) { return faults_seen(c, plan, faults); };
  EXPECT_EQ(noticed({}), 0);
  EXPECT_GT(noticed({.barrier = 0}), 0) << "after x was written";
  EXPECT_GT(noticed({.barrier = 1}), 0) << "before sums overwrite x";
  EXPECT_GT(noticed({.barrier = 2}), 0) << "before sums are read";
  EXPECT_EQ(noticed({.fence = 0}), 8) << "between the panels' sums and the ticket";
  EXPECT_EQ(noticed({.warp = 0}), 8) << "before the ticket";
  plan.shared_bytes -= 512;
  EXPECT_EQ(noticed({}), 8) << "shared memory too small";
}

// A block an SM, row pairs and panels of Llama-3-8B's shapes.
TEST(PlanD24, BlocksShareOutADevice) {
  const auto plan = [](int64_t rows, int64_t cols, int64_t m) {
    const T16View w{.format = PackedFormat::d24,
                    .rows = rows,
                    .cols = cols,
                    .parts = d24::panels_of(rows, cols)};
    SpmmT16Plan p;
    EXPECT_TRUE(plan_spmm_cuda(w, m, kH100, &p).ok()) << rows << " x " << cols;
    EXPECT_GE(p.blocks_n * p.warps_n, d24::row_pairs(rows));
    EXPECT_LE(p.warps_n * p.warps_k, p.block_warps);
    EXPECT_LE(p.blocks_n * p.splits, kH100.sms);
    EXPECT_LE(p.shared_bytes, kH100.shared_per_block);
    EXPECT_GE(p.tokens, m);
    return std::array{p.splits, p.warps_n, p.warps_k, p.token_tiles};
  };
  EXPECT_EQ(plan(14336, 4096, 64), (std::array{3, 11, 1, 8}));
  EXPECT_EQ(plan(14336, 4096, 48), (std::array{3, 11, 1, 6}));
  EXPECT_EQ(plan(14336, 4096, 33), (std::array{3, 11, 1, 5}));
  EXPECT_EQ(plan(4096, 14336, 64), (std::array{8, 8, 1, 8}));
  EXPECT_EQ(plan(4096, 4096, 64), (std::array{4, 4, 3, 8}));
  EXPECT_EQ(plan(1024, 4096, 64), (std::array{4, 1, 8, 8}));
  const T16View w{.format = PackedFormat::d24, .rows = 64, .cols = 64, .parts = 1};
  SpmmT16Plan p;
  EXPECT_FALSE(plan_spmm_cuda(w, 65, kH100, &p).ok());
  EXPECT_FALSE(plan_spmm_cuda(w, 0, kH100, &p).ok());
}

INSTANTIATE_TEST_SUITE_P(All, SpmmD24, testing::ValuesIn(d24_rows()),
                         [](const testing::TestParamInfo<SimRow>& info) {
                           return std::string(info.param.name);
                         });

}  // namespace
}  // namespace tamis::test
