// What the tests of the spmm kernels for warpgroups have in common: every layout in both dtypes
// against a double reference, as spmm.cc does for the rest, and bugs put in on purpose.
//
// Kind says which kernel: Params, kFormat, kLayouts, kLayOut (weight, tokens, layout, blocks,
// cluster) and kParams (args, plan).
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda_sim/layouts.h"

namespace tamis::test {

template <class Kind>
struct GroupRow : LayoutRow<typename Kind::Params> {};

template <class Kind>
std::string run(const GroupRow<Kind>& row, Case& c, const SpmmCudaPlan& plan, uint64_t seed,
                sim::Faults faults = {}) {
  const sim::Launch launch{.grid = {static_cast<uint32_t>(plan.blocks_n * plan.splits)},
                           .block = {static_cast<uint32_t>(Kind::kLayouts[plan.layout].threads())},
                           .shared_bytes = static_cast<size_t>(plan.shared_bytes),
                           .seed = seed,
                           .faults = faults,
                           .cluster = static_cast<uint32_t>(plan.splits)};
  return run_case(c, plan, [&](const SpmmCudaArgs& args) {
    return row.simulate(launch, Kind::kParams(args, plan));
  });
}

template <class Kind>
class GroupTest : public testing::TestWithParam<GroupRow<Kind>> {
 protected:
  using testing::TestWithParam<GroupRow<Kind>>::GetParam;

  const auto& layout() const { return Kind::kLayouts[GetParam().layout]; }

  Case case_of(Problem p) const {
    p.dtype = GetParam().dtype;
    p.format = Kind::kFormat;
    return Case(p);
  }

  SpmmCudaPlan lay_out(Case& c, int64_t m, int64_t blocks, bool cluster = true) const {
    return Kind::kLayOut(c.t16(), m, GetParam().layout, blocks, cluster);
  }

  void expect_right(const Problem& p, int64_t blocks) const {
    Case c = case_of(p);
    const SpmmCudaPlan plan = lay_out(c, p.m, blocks);
    EXPECT_EQ(run(GetParam(), c, plan, p.seed), "")
        << label(p) << ", " << plan.blocks_n << " blocks";
  }

  // Shares that are whole output tiles, parts of one, and parts of several.
  void shapes_and_shares() const {
    uint64_t seed = 100;
    for (const auto& [n, k] : {std::pair{16, 64}, {17, 68}, {1, 8}, {150, 452}, {270, 300}}) {
      for (const int64_t blocks : {1, 3, 1000}) {
        const bool integers = seed % 2 != 0;
        const double sparsity = seed % 3 == 0 ? 0.9 : 0.5;
        expect_right({.n = n,
                      .k = k,
                      .m = 3,
                      .sparsity = sparsity,
                      .integers = integers,
                      .bias = integers,
                      .seed = ++seed},
                     blocks);
      }
    }
    expect_right({.n = 50, .k = 200, .m = 3, .sparsity = 1.0, .seed = ++seed}, 2);
  }

  void tokens() const {
    uint64_t seed = 200;
    const int64_t t = layout().tokens;
    for (const int64_t m : {int64_t{1}, t, t + 1}) {
      expect_right({.n = 40, .k = 328, .m = m, .integers = true, .seed = ++seed}, 3);
    }
    expect_right({.n = 20, .k = 136, .m = t - 1, .x_padding = 8, .y_padding = 3, .seed = ++seed},
                 1);
    expect_right({.n = 20, .k = 136, .m = 2 * t + 3, .x_padding = 1, .seed = ++seed}, 2);
  }

  void two_runs_agree() const {
    Case c = case_of({.n = 140, .k = 320, .m = 9});
    EXPECT_EQ(run_twice(GetParam(), c, lay_out(c, 9, 3)), "");
  }

  // Of two seeds, in how many a fault shows: all of `always`, some of `sometimes`. The case has 6
  // tokens of 1000 columns.
  void faults_are_noticed(Case& c, const std::vector<sim::Faults>& always,
                          const std::vector<sim::Faults>& sometimes) const {
    const SpmmCudaPlan plan = lay_out(c, 6, 2);
    const auto noticed = [&](sim::Faults faults) {
      return test::noticed(GetParam(), c, plan, faults, 2);
    };
    EXPECT_EQ(noticed({}), 0);
    for (size_t i = 0; i < always.size(); ++i) EXPECT_EQ(noticed(always[i]), 2) << "always " << i;
    for (size_t i = 0; i < sometimes.size(); ++i) {
      EXPECT_GT(noticed(sometimes[i]), 0) << "sometimes " << i;
    }
    for (const int i : {0, 1}) EXPECT_EQ(noticed({.wait = i}), 2) << "no wait for panel " << i;
    for (const int i : {0, 40, 200}) EXPECT_EQ(noticed({.copy = i}), 2) << "no copy " << i;
    SpmmCudaPlan small = plan;
    small.shared_bytes /= 2;
    EXPECT_NE(run(GetParam(), c, small, 1), "") << "shared memory too small";
    // Both blocks have half of a tile's panels, with a barrier each, and leave their sums in
    // memory.
    const SpmmCudaPlan apart = lay_out(c, 6, 2, false);
    const int32_t panels = Kind::kParams(c.args(), apart).panels;
    EXPECT_EQ(run(GetParam(), c, apart, 1), "");
    EXPECT_NE(run(GetParam(), c, apart, 1, {.fence = 0}), "") << "between the sums and the ticket";
    EXPECT_NE(run(GetParam(), c, apart, 1, {.barrier = panels / 2}), "") << "before the ticket";
  }
};

// Name of a test's layout and dtype.
template <class Kind>
std::string name_of(const testing::TestParamInfo<GroupRow<Kind>>& info) {
  const auto& l = Kind::kLayouts[info.param.layout];
  return "tokens_" + std::to_string(l.tokens) + "_groups_" + std::to_string(l.groups) + "_" +
         name_of(info.param.dtype);
}

// A plan for m tokens fits an H100 and shares out everything.
template <class Kind>
void expect_plan_fits(const PackedView& w, int64_t m, const SpmmCudaPlan& p) {
  EXPECT_LE(p.shared_bytes, kH100.shared_per_block);
  EXPECT_GE(p.tokens, m);
  const typename Kind::Params q = Kind::kParams({.w = w, .m = m}, p);
  EXPECT_GE(q.blocks, 1);
  EXPECT_LE(q.blocks, q.panels);
  EXPECT_GE(int64_t{q.token_tiles} * 8 * p.token_tiles, m);
  EXPECT_TRUE(p.workspace_bytes == 0 || q.panels / q.col_panels <= kWorkspaceTickets);
}

}  // namespace tamis::test
