// The m24 kernel for warpgroups on the simulator: every layout in both dtypes against a double
// reference, as spmm.cc does for the rest, and bugs put in on purpose.
#include "ops/spmm/m24_wgmma.cuh"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "cuda_sim/problem.h"

namespace tamis::test {
namespace {

struct Row {
  int32_t layout;
  DType dtype;
  std::string (*run)(const sim::Launch&, const M24GroupParams&);
};

template <class Config>
std::string simulate_group(const sim::Launch& launch, const M24GroupParams& p) {
  return sim::launch(launch, [&] { spmm_m24_group<Config>(p); });
}

std::vector<Row> rows() {
  std::vector<Row> all;
#define TAMIS_M24_LAYOUT(...)                                                 \
  all.push_back({static_cast<int32_t>(all.size() / 2), DType::bf16,           \
                 &simulate_group<M24GroupConfig<DType::bf16, __VA_ARGS__>>}); \
  all.push_back({static_cast<int32_t>(all.size() / 2), DType::f16,            \
                 &simulate_group<M24GroupConfig<DType::f16, __VA_ARGS__>>});
#include "ops/spmm/m24_layouts.def"
#undef TAMIS_M24_LAYOUT
  return all;
}

std::string run(const Row& row, Case& c, const SpmmT16Plan& plan, uint64_t seed,
                sim::Faults faults = {}) {
  std::vector<uint64_t> workspace(static_cast<size_t>(ceil_div(plan.workspace_bytes, 8)), 0);
  std::fill(workspace.begin() + (workspace.empty() ? 0 : kTicketBytes / 8), workspace.end(),
            ~uint64_t{0});  // partial sums start as NaN
  SpmmCudaArgs args = c.args();
  args.workspace = workspace.data();
  args.workspace_bytes = plan.workspace_bytes;
  c.clear_y();
  const sim::Launch launch{.grid = {static_cast<uint32_t>(plan.blocks_n * plan.splits)},
                           .block = {static_cast<uint32_t>(kM24Layouts[plan.layout].threads())},
                           .shared_bytes = static_cast<size_t>(plan.shared_bytes),
                           .seed = seed,
                           .faults = faults,
                           .cluster = static_cast<uint32_t>(plan.splits)};
  std::string wrong = row.run(launch, m24_group_params(args, plan));
  if (!wrong.empty()) return wrong;
  for (size_t i = 0; i < workspace.size() && i < kTicketBytes / 8; ++i) {
    if (workspace[i] != 0) return "a ticket is not zero again";
  }
  return c.compare();
}

class M24Group : public testing::TestWithParam<Row> {
 protected:
  const M24Layout& layout() const { return kM24Layouts[GetParam().layout]; }
  void expect_right(Problem p, int64_t blocks) {
    p.dtype = GetParam().dtype;
    p.format = PackedFormat::m24;
    Case c(p);
    const SpmmT16Plan plan = lay_out_m24_group(c.t16(), p.m, GetParam().layout, blocks);
    EXPECT_EQ(run(GetParam(), c, plan, p.seed), "")
        << "n " << p.n << ", k " << p.k << ", m " << p.m << ", seed " << p.seed << ", "
        << plan.blocks_n << " blocks";
  }
};

// Shares that are whole output tiles, parts of one, and parts of several.
TEST_P(M24Group, ShapesAndShares) {
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

TEST_P(M24Group, Tokens) {
  uint64_t seed = 200;
  const int64_t t = layout().tokens;
  for (const int64_t m : {int64_t{1}, t, t + 1}) {
    expect_right({.n = 40, .k = 328, .m = m, .integers = true, .seed = ++seed}, 3);
  }
  expect_right({.n = 20, .k = 136, .m = t - 1, .x_padding = 8, .y_padding = 3, .seed = ++seed}, 1);
  expect_right({.n = 20, .k = 136, .m = 2 * t + 3, .x_padding = 1, .seed = ++seed}, 2);
}

TEST_P(M24Group, TwoRunsAgreeInEveryBit) {
  Case c({.n = 140, .k = 320, .m = 9, .dtype = GetParam().dtype, .format = PackedFormat::m24});
  const SpmmT16Plan plan = lay_out_m24_group(c.t16(), 9, GetParam().layout, 3);
  ASSERT_EQ(run(GetParam(), c, plan, 1), "");
  const std::vector<uint16_t> first(c.y().data(), c.y().data() + c.y().size());
  ASSERT_EQ(run(GetParam(), c, plan, 2), "");
  EXPECT_EQ(first, std::vector<uint16_t>(c.y().data(), c.y().data() + c.y().size()));
}

TEST_P(M24Group, FaultsAreNoticed) {
  Case c({.n = 64, .k = 1000, .m = 6, .dtype = GetParam().dtype, .format = PackedFormat::m24});
  const SpmmT16Plan plan = lay_out_m24_group(c.t16(), 6, GetParam().layout, 2);
  const auto noticed = [&](sim::Faults faults) {
    int count = 0;
    for (uint64_t seed = 1; seed <= 2; ++seed) {
      count += run(GetParam(), c, plan, seed, faults).empty() ? 0 : 1;
    }
    return count;
  };
  EXPECT_EQ(noticed({}), 0);
  for (const int i : {0, 1}) {
    EXPECT_EQ(noticed({.product = i}), 2) << "no wait for product " << i;
  }
  for (const int i : {0, 1}) EXPECT_EQ(noticed({.wait = i}), 2) << "no wait for panel " << i;
  for (const int i : {0, 1}) EXPECT_GT(noticed({.barrier = i}), 0) << "no barrier " << i;
  for (const int i : {0, 40, 200}) EXPECT_EQ(noticed({.copy = i}), 2) << "no copy " << i;
  SpmmT16Plan small = plan;
  small.shared_bytes /= 2;
  EXPECT_EQ(run(GetParam(), c, small, 1).empty(), false) << "shared memory too small";
  // Both blocks have half of a tile's panels, with a barrier each, and leave their sums in memory.
  const SpmmT16Plan apart = lay_out_m24_group(c.t16(), 6, GetParam().layout, 2, false);
  const int32_t panels = m24_group_params(c.args(), apart).panels;
  EXPECT_EQ(run(GetParam(), c, apart, 1), "");
  EXPECT_NE(run(GetParam(), c, apart, 1, {.fence = 0}), "") << "between the sums and the ticket";
  EXPECT_NE(run(GetParam(), c, apart, 1, {.barrier = panels / 2}), "") << "before the ticket";
}

INSTANTIATE_TEST_SUITE_P(Layouts, M24Group, testing::ValuesIn(rows()), [](const auto& info) {
  const M24Layout& l = kM24Layouts[info.param.layout];
  return "tokens_" + std::to_string(l.tokens) + "_groups_" + std::to_string(l.groups) + "_" +
         name_of(info.param.dtype);
});

TEST(PlanM24Group, FitsAndSharesEverything) {
  for (const auto& [n, k] : {std::pair{1, 4},
                             {16, 131072},
                             {1024, 4096},
                             {4096, 4096},
                             {14336, 4096},
                             {4096, 14336},
                             {128256, 4096},
                             {1 << 20, 64}}) {
    for (const int64_t m : {1, 8, 9, 16, 32, 64, 65, 128, 1000, 8192}) {
      const T16View w{.format = PackedFormat::m24,
                      .rows = n,
                      .cols = k,
                      .record_bytes = m24::record_bytes(n, k),
                      .max_record_bytes = m24::kRecordBytes};
      SpmmT16Plan p;
      const bool many = w.record_bytes >= 4096 * m24::kRecordBytes;
      EXPECT_EQ(most_tokens_cuda(w, kH100) > kMaxTokens, many);
      const bool planned = plan_spmm_cuda(w, m, kH100, &p).ok();
      EXPECT_EQ(planned, m <= most_tokens_cuda(w, kH100));
      const int64_t few = w.record_bytes >= 8192 * m24::kRecordBytes ? 32 : 64;
      EXPECT_EQ(p.layout >= 0, many && m <= few);
      EXPECT_EQ(p.many_layout >= 0, many && planned && m > few);
      ASSERT_TRUE(plan_m24_group(w, m, kH100, &p).ok());
      EXPECT_LE(p.shared_bytes, kH100.shared_per_block);
      EXPECT_GE(p.tokens, m);
      const M24GroupParams q = m24_group_params({.w = w, .m = m}, p);
      EXPECT_GE(q.blocks, 1);
      EXPECT_LE(q.blocks, q.panels);
      EXPECT_GE(int64_t{q.token_tiles} * 8 * p.token_tiles, m);
      EXPECT_TRUE(p.workspace_bytes == 0 || q.panels / q.col_panels <= kMaxTickets);
    }
  }
  // Parts of a tile as a cluster: short ones of 64 rows, long ones of 128, which fill the device.
  const auto plan = [](int64_t n, int64_t k) {
    SpmmT16Plan p;
    EXPECT_TRUE(
        plan_m24_group({.format = PackedFormat::m24, .rows = n, .cols = k}, 16, kH100, &p).ok());
    return std::array{kM24Layouts[p.layout].rows(), p.splits};
  };
  EXPECT_EQ(plan(4096, 4096), (std::array{64, 3}));
  EXPECT_EQ(plan(4096, 14336), (std::array{128, 7}));
  EXPECT_EQ(plan(14336, 4096), (std::array{64, 1}));
  EXPECT_EQ(plan(1024, 4096), (std::array{64, 8}));
  EXPECT_EQ(plan(2048, 2048), (std::array{64, 4}));
  EXPECT_EQ(plan(5120, 5120), (std::array{128, 5}));
  EXPECT_EQ(plan(8192, 8192), (std::array{64, 2}));
  SpmmT16Plan p;
  EXPECT_EQ(
      plan_spmm_cuda({.format = PackedFormat::m24, .rows = 16, .cols = 64}, 0, kH100, &p).code,
      Code::invalid_argument);
}

}  // namespace
}  // namespace tamis::test
