// r24 on the simulator: every layout in both dtypes against a double reference, weights written
// out, and bugs put in on purpose.
#include "ops/spmm/r24.cuh"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "cuda_sim/layouts.h"

namespace tamis::test {
namespace {

struct Row : LayoutRow<SpmmR24Params> {};

std::vector<Row> rows() {
  return layout_rows<Row>({
#define TAMIS_R24_LAYOUT(...) \
  {&spmm_r24<R24Config<DType::bf16, __VA_ARGS__>>, &spmm_r24<R24Config<DType::f16, __VA_ARGS__>>},
#include "ops/spmm/r24_layouts.def"
#undef TAMIS_R24_LAYOUT
  });
}

std::string run(const Row& row, Case& c, const SpmmCudaPlan& plan, uint64_t seed,
                sim::Faults faults = {}) {
  const sim::Launch launch{
      .grid = {static_cast<uint32_t>(plan.splits), static_cast<uint32_t>(plan.blocks_n)},
      .block = {static_cast<uint32_t>(kR24Layouts[plan.layout].threads())},
      .shared_bytes = static_cast<size_t>(plan.shared_bytes),
      .seed = seed,
      .faults = faults,
      .cluster = plan.cluster ? static_cast<uint32_t>(plan.splits) : 1};
  return run_case(c, plan, [&](const SpmmCudaArgs& args) {
    SpmmR24Params p = spmm_r24_params(args, plan);
    if (p.x_aligned) p.x_boxes = dev::tensor_map(spmm_r24_x(args));
    return row.simulate(launch, p);
  });
}

class SpmmR24 : public testing::TestWithParam<Row> {
 protected:
  const R24Layout& layout() const { return kR24Layouts[GetParam().layout]; }
  Case case_of(Problem p) const {
    p.dtype = GetParam().dtype;
    p.format = PackedFormat::r24;
    return Case(p);
  }
  SpmmCudaPlan lay_out(const Case& c, int32_t parts, bool cluster) const {
    return lay_out_spmm_r24(c.t16(), GetParam().layout, parts, cluster);
  }
  void expect_right(const Problem& p, int32_t parts, bool cluster) const {
    Case c = case_of(p);
    EXPECT_EQ(run(GetParam(), c, lay_out(c, parts, cluster), p.seed), "")
        << label(p) << ", " << parts << " parts" << (cluster ? ", a cluster" : "");
  }
};

TEST_P(SpmmR24, ShapesAndDensities) {
  uint64_t seed = 900;
  const int64_t r = layout().rows();
  for (const double sparsity : {0.0, 0.5, 0.9, 1.0}) {
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{16, 64}, {1, 8}, {r + 17, 200}}) {
      const bool integers = seed % 2 != 0;
      expect_right({.n = n,
                    .k = k,
                    .m = 3,
                    .sparsity = sparsity,
                    .integers = integers,
                    .bias = integers,
                    .seed = ++seed},
                   1, false);
    }
  }
  // More records of a warp than offsets of a batch, and than stages.
  expect_right({.n = r, .k = 64 * 90, .m = 2, .sparsity = 0.8, .integers = true, .seed = ++seed}, 1,
               false);
}

// Rows of x that begin anywhere, y of odd rows, all tokens and one.
TEST_P(SpmmR24, Tokens) {
  const int64_t t = layout().tokens();
  uint64_t seed = 1000;
  expect_right({.n = 40, .k = 136, .m = 1, .integers = true, .seed = ++seed}, 1, false);
  expect_right({.n = 40, .k = 133, .m = 1, .integers = true, .seed = ++seed}, 1, false);
  expect_right({.n = 40, .k = 136, .m = t, .x_padding = 8, .seed = ++seed}, 1, false);
  expect_right({.n = 23, .k = 136, .m = t - 1, .x_padding = 1, .y_padding = 4, .seed = ++seed}, 2,
               true);
  expect_right({.n = 23, .k = 70, .m = t - 29, .x_padding = 2, .y_padding = 8, .seed = ++seed}, 2,
               false);
}

TEST_P(SpmmR24, Parts) {
  uint64_t seed = 1100;
  for (const int32_t parts : {2, 3, 8}) {
    for (const bool cluster : {true, false}) {
      expect_right({.n = layout().rows() + 20,
                    .k = 64 * 9,
                    .m = layout().tokens() - 7,
                    .integers = seed % 2 != 0,
                    .seed = ++seed},
                   parts, cluster);
    }
  }
}

TEST_P(SpmmR24, TwoRunsAgreeInEveryBit) {
  for (const bool cluster : {true, false}) {
    Case c = case_of({.n = 150, .k = 640, .m = 9, .sparsity = 0.5, .seed = 53});
    EXPECT_EQ(run_twice(GetParam(), c, lay_out(c, 3, cluster)), "");
  }
}

TEST_P(SpmmR24, FaultsAreNoticed) {
  Case c = case_of({.n = layout().rows(), .k = 64 * 24, .m = 6, .sparsity = 0.5});
  const auto noticed = [&](int32_t parts, bool cluster, sim::Faults faults) {
    return test::noticed(GetParam(), c, lay_out(c, parts, cluster), faults, 2);
  };
  EXPECT_EQ(noticed(1, false, {}), 0);
  EXPECT_EQ(noticed(2, true, {}), 0);
  EXPECT_EQ(noticed(2, false, {}), 0);
  for (const int i : {0, 5}) EXPECT_EQ(noticed(1, false, {.wait = i}), 2) << "no wait " << i;
  EXPECT_EQ(noticed(1, false, {.product = 24}), 2) << "the last stage's products";
  for (const int i : {0, 40}) EXPECT_EQ(noticed(1, false, {.copy = i}), 2) << "no copy " << i;
  for (const int i : {0, 3}) EXPECT_EQ(noticed(1, false, {.arrival = i}), 2) << "arrival " << i;
  EXPECT_GT(noticed(1, false, {.barrier = 0}), 0) << "before barriers are used";
  EXPECT_GT(noticed(1, false, {.warp = 2}), 0) << "between pairs and their residual";
  EXPECT_EQ(noticed(2, true, {.cluster = 0}), 2) << "before sums of others are read";
  EXPECT_EQ(noticed(2, false, {.fence = 0}), 2) << "between the sums and the ticket";
  EXPECT_GT(noticed(2, false, {.barrier = 1}), 0) << "before the ticket";
  SpmmCudaPlan small = lay_out(c, 1, false);
  small.shared_bytes -= 32;
  EXPECT_NE(run(GetParam(), c, small, 1), "") << "shared memory too small";
}

INSTANTIATE_TEST_SUITE_P(Layouts, SpmmR24, testing::ValuesIn(rows()), [](const auto& info) {
  const R24Layout& l = kR24Layouts[info.param.layout];
  return "tokens_" + std::to_string(l.tokens()) + "_rows_" + std::to_string(l.rows()) + "_" +
         name_of(info.param.dtype);
});

TEST(ExpandR24, WrittenOutIsTheWeight) {
  uint64_t seed = 6000;
  for (const double sparsity : {0.0, 0.5, 0.95, 1.0}) {
    for (const auto& [n, k, padding] :
         {std::array<int64_t, 3>{32, 64, 0}, {17, 65, 3}, {3, 5, 0}, {50, 904, 8}, {40, 180, 4}}) {
      Case c({.n = n,
              .k = k,
              .m = 1,
              .sparsity = sparsity,
              .format = PackedFormat::r24,
              .seed = ++seed});
      const int64_t stride = k + padding;
      Guarded<uint16_t> out(static_cast<size_t>((n - 1) * stride + k));
      std::fill(out.span().begin(), out.span().end(), kNotWritten);
      const ExpandR24Params p = expand_r24_params(c.t16(), out.data(), stride);
      const sim::Launch launch{
          .grid = {static_cast<uint32_t>(ceil_div(p.tiles, kR24ExpandWarps))},
          .block = {32 * kR24ExpandWarps},
          .shared_bytes = static_cast<size_t>(kR24ExpandWarps * r24::kTileBytes),
          .seed = seed};
      ASSERT_EQ(sim::launch(launch, [&] { expand_r24(p); }), "");
      expect_dense(c, out.span(), stride);
    }
  }
}

TEST(PlanR24, FitsAndTakesEveryTile) {
  for (const auto& [n, k] : plan_shapes(1, 1)) {
    for (const int64_t m : {1, 33, 64, 65, 128}) {
      const PackedView w{.format = PackedFormat::r24, .rows = n, .cols = k};
      SpmmCudaPlan p;
      ASSERT_TRUE(plan_spmm_cuda(w, m, kH100, &p).ok());
      const R24Layout& l = kR24Layouts[p.layout];
      EXPECT_LE(p.shared_bytes, kH100.shared_per_block);
      EXPECT_GE(p.tokens, m);
      EXPECT_EQ(p.tokens, m <= 64 ? 64 : 128);
      EXPECT_GE(int64_t{p.blocks_n} * l.rows(), n);
      EXPECT_LT((int64_t{p.blocks_n} - 1) * l.rows(), n);
      EXPECT_LE(p.splits, t16::col_tiles(k));
      EXPECT_TRUE(!p.cluster || p.splits <= kMaxCluster);
      EXPECT_EQ(p.workspace_bytes > 0, p.splits > 1 && !p.cluster);
      EXPECT_TRUE(p.splits == 1 || p.blocks_n <= kWorkspaceTickets);
    }
  }
  const PackedView w{.format = PackedFormat::r24, .rows = 64, .cols = 64};
  SpmmCudaPlan p;
  EXPECT_EQ(std::string(plan_spmm_cuda(w, 129, kH100, &p).text),
            "spmm: m: got 129 on sm_90, wanted 1 to 128 on sm_90 for r24 weights");
  EXPECT_FALSE(plan_spmm_cuda(w, 0, kH100, &p).ok());
  EXPECT_FALSE(plan_spmm_cuda(w, 64, kL40, &p).ok());
}

}  // namespace
}  // namespace tamis::test
