// The m24 kernel for many tokens on the simulator: every layout in both dtypes against a double
// reference, and bugs put in on purpose.
#include "ops/spmm/m24_many.cuh"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "cuda_sim/layouts.h"

namespace tamis::test {
namespace {

struct Row : LayoutRow<M24ManyParams> {};

std::vector<Row> rows() {
  return layout_rows<Row>({
#define TAMIS_M24_MANY(...)                                 \
  {&spmm_m24_many<M24ManyConfig<DType::bf16, __VA_ARGS__>>, \
   &spmm_m24_many<M24ManyConfig<DType::f16, __VA_ARGS__>>},
#include "ops/spmm/m24_many_layouts.def"
#undef TAMIS_M24_MANY
  });
}

// A device of few multiprocessors, which take several tiles.
constexpr CudaDevice kSmall{
    .capability = 90, .sms = 4, .shared_per_sm = 233472, .shared_per_block = 232448};

std::string run(const Row& row, Case& c, const SpmmCudaPlan& plan, uint64_t seed,
                sim::Faults faults = {}) {
  return run_case(c, plan, [&](const SpmmCudaArgs& args) {
    M24ManyParams p = m24_many_params(args, plan);
    p.x_boxes = dev::tensor_map(m24_many_x(args, plan));
    p.y_boxes = dev::tensor_map(m24_many_y(args, plan));
    p.record_boxes = dev::tensor_map(m24_many_records(args, plan));
    const auto cluster = static_cast<uint32_t>(p.parts);
    const sim::Launch launch{
        .grid = {static_cast<uint32_t>(p.clusters) * cluster},
        .block = {static_cast<uint32_t>(kM24ManyLayouts[plan.many_layout].threads())},
        .shared_bytes = static_cast<size_t>(plan.shared_bytes),
        .seed = seed,
        .faults = faults,
        .cluster = cluster,
        .resident = static_cast<uint32_t>(kM24ManyLayouts[plan.many_layout].blocks)};
    return row.simulate(launch, p);
  });
}

class M24Many : public testing::TestWithParam<Row> {
 protected:
  const M24ManyLayout& layout() const { return kM24ManyLayouts[GetParam().layout]; }
  void expect_right(Problem p, int32_t parts) {
    p.dtype = GetParam().dtype;
    p.format = PackedFormat::m24;
    Case c(p);
    const SpmmCudaPlan plan = lay_out_m24_many(c.t16(), p.m, GetParam().layout, parts, kSmall);
    EXPECT_EQ(run(GetParam(), c, plan, p.seed), "") << label(p) << ", " << parts << " parts";
  }
};

TEST_P(M24Many, Rows) {
  uint64_t seed = 100;
  const int64_t r = layout().rows();
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{16, 64}, {1, 8}, {r + 1, 452}}) {
    expect_right({.n = n, .k = k, .m = 3, .sparsity = 0.5, .integers = true, .seed = ++seed}, 1);
  }
  // More tiles than blocks.
  expect_right({.n = 9 * r - 20, .k = 200, .m = 3, .sparsity = 0.9, .bias = false, .seed = ++seed},
               1);
}

TEST_P(M24Many, Tokens) {
  const int64_t t = layout().tokens;
  uint64_t seed = 200;
  expect_right({.n = 40, .k = 136, .m = 1, .integers = true, .seed = ++seed}, 1);
  expect_right({.n = 40, .k = 136, .m = t - 1, .x_padding = 4, .y_padding = 8, .seed = ++seed}, 1);
  expect_right({.n = 24, .k = 136, .m = t + 1, .y_padding = 3, .seed = ++seed}, 1);
  expect_right({.n = 20, .k = 133, .m = 9, .x_padding = 1, .seed = ++seed}, 2);
}

TEST_P(M24Many, Parts) {
  uint64_t seed = 300;
  for (const int32_t parts : {2, 3, 8}) {
    expect_right({.n = layout().rows() + 8,
                  .k = 64 * 9,
                  .m = layout().tokens / 2 + 5,
                  .integers = seed % 2 != 0,
                  .seed = ++seed},
                 parts);
  }
  expect_right({.n = 24, .k = 120, .m = 16, .integers = true, .seed = ++seed}, 4);  // some of none
}

TEST_P(M24Many, TwoRunsAgreeInEveryBit) {
  Case c({.n = 140, .k = 320, .m = 9, .dtype = GetParam().dtype, .format = PackedFormat::m24});
  const SpmmCudaPlan plan = lay_out_m24_many(c.t16(), 9, GetParam().layout, 3, kSmall);
  EXPECT_EQ(run_twice(GetParam(), c, plan), "");
}

TEST_P(M24Many, FaultsAreNoticed) {
  Case c({.n = layout().rows(),
          .k = 64 * 20,
          .m = 6,
          .dtype = GetParam().dtype,
          .format = PackedFormat::m24});
  const auto noticed = [&](int32_t parts, sim::Faults faults) {
    const SpmmCudaPlan plan = lay_out_m24_many(c.t16(), 6, GetParam().layout, parts, kSmall);
    return test::noticed(GetParam(), c, plan, faults, 2);
  };
  EXPECT_EQ(noticed(1, {}), 0);
  EXPECT_EQ(noticed(2, {}), 0);
  const int slots = layout().slots;  // with two the first product is waited for after the second
  for (const int i : {slots - 1, 18 + slots}) {
    EXPECT_EQ(noticed(1, {.product = i}), 2) << "no wait for product " << i;
  }
  for (const int i : {0, 12}) EXPECT_EQ(noticed(1, {.wait = i}), 2) << "no wait for stage " << i;
  for (const int i : {0, 3}) EXPECT_EQ(noticed(1, {.arrival = i}), 2) << "no arrival " << i;
  for (const int i : {0, 40}) EXPECT_EQ(noticed(1, {.copy = i}), 2) << "no copy " << i;
  EXPECT_EQ(noticed(2, {.barrier = 1}), 2) << "sums over stages that are read";
  if (layout().y_tokens() > 0) {
    EXPECT_EQ(noticed(1, {.wait = 21}), 2) << "y over a box that is read";
    EXPECT_EQ(noticed(1, {.wait = 22}), 2) << "boxes that are read when the block ends";
    EXPECT_GT(noticed(1, {.barrier = 2}), 0) << "a box that is not all there";
    EXPECT_GT(noticed(1, {.barrier = 3}), 0) << "the next one before the wait for this one";
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, M24Many, testing::ValuesIn(rows()), [](const auto& info) {
  const M24ManyLayout& l = kM24ManyLayouts[info.param.layout];
  return "tokens_" + std::to_string(l.tokens) + "_groups_" + std::to_string(l.groups) + "_slots_" +
         std::to_string(l.slots) + "_blocks_" + std::to_string(l.blocks) + "_" +
         name_of(info.param.dtype);
});

// Few tiles in many parts, each as few stages as the meeting of parts costs.
TEST(PlanM24Many, Parts) {
  const auto plan = [](int64_t n, int64_t k, int64_t m) {
    const PackedView w = m24_weight(n, k);
    SpmmCudaPlan p;
    EXPECT_TRUE(plan_m24_many(w, m, kH100, &p).ok());
    const M24ManyLayout& l = kM24ManyLayouts[p.many_layout];
    return std::array{l.tokens, l.rows(), p.splits};
  };
  EXPECT_EQ(plan(1024, 4096, 128), (std::array{128, 128, 8}));
  EXPECT_EQ(plan(1024, 4096, 256), (std::array{128, 128, 6}));
  EXPECT_EQ(plan(1024, 4096, 512), (std::array{128, 128, 3}));
  EXPECT_EQ(plan(1024, 4096, 1024), (std::array{128, 128, 2}));
  EXPECT_EQ(plan(4096, 4096, 512), (std::array{256, 128, 2}));
  EXPECT_EQ(plan(4096, 14336, 128), (std::array{128, 128, 3}));
  EXPECT_EQ(plan(14336, 4096, 2048), (std::array{256, 128, 1}));
}

TEST(PlanM24Many, FitsAndTakesEveryTile) {
  for (const auto& [n, k] : plan_shapes(1, 4)) {
    for (const int64_t m : {1, 65, 128, 512, 1000, 8192}) {
      const PackedView w = m24_weight(n, k);
      SpmmCudaPlan p;
      ASSERT_TRUE(plan_m24_many(w, m, kH100, &p).ok());
      ASSERT_GE(p.many_layout, 0);
      const M24ManyLayout& l = kM24ManyLayouts[p.many_layout];
      EXPECT_LE(p.shared_bytes, kH100.shared_per_block);
      EXPECT_GE(p.tokens, m);
      EXPECT_EQ(p.workspace_bytes, 0);
      EXPECT_LE(p.splits, kMaxCluster);
      EXPECT_LE(p.splits, t16::col_tiles(k));
      std::vector<uint16_t> any(8);
      const M24ManyParams q = m24_many_params(
          {.w = w, .m = m, .x = any.data(), .x_stride = k, .y = any.data(), .y_stride = n}, p);
      EXPECT_GE(q.clusters, 1);
      EXPECT_LE(q.clusters, q.tiles);
      EXPECT_GE(int64_t{q.tiles / q.token_tiles} * l.rows(), n);
      EXPECT_GE(int64_t{q.token_tiles} * l.tokens, m);
      EXPECT_TRUE(p.splits == 1 || q.clusters == q.tiles) << "parts meet once";
    }
  }
}

}  // namespace
}  // namespace tamis::test
