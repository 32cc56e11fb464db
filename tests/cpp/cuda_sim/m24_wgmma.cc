// The m24 kernel for warpgroups on the simulator.
#include "ops/spmm/m24_wgmma.cuh"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "cuda_sim/warpgroups.h"

namespace tamis::test {
namespace {

struct M24Kind {
  using Params = M24GroupParams;
  static constexpr PackedFormat kFormat = PackedFormat::m24;
  static constexpr const auto& kLayouts = kM24Layouts;
  static constexpr auto kLayOut = &lay_out_m24_group;
  static constexpr auto kParams = &m24_group_params;
};

std::vector<GroupRow<M24Kind>> rows() {
  return layout_rows<GroupRow<M24Kind>>({
#define TAMIS_M24_LAYOUT(...)                                 \
  {&spmm_m24_group<M24GroupConfig<DType::bf16, __VA_ARGS__>>, \
   &spmm_m24_group<M24GroupConfig<DType::f16, __VA_ARGS__>>},
#include "ops/spmm/m24_layouts.def"
#undef TAMIS_M24_LAYOUT
  });
}

class M24Group : public GroupTest<M24Kind> {};

TEST_P(M24Group, ShapesAndShares) {
  shapes_and_shares();
}
TEST_P(M24Group, Tokens) {
  tokens();
}
TEST_P(M24Group, TwoRunsAgreeInEveryBit) {
  two_runs_agree();
}

TEST_P(M24Group, FaultsAreNoticed) {
  Case c = case_of({.n = 64, .k = 1000, .m = 6});
  faults_are_noticed(c, {{.product = 0}, {.product = 1}}, {{.barrier = 0}, {.barrier = 1}});
}

INSTANTIATE_TEST_SUITE_P(Layouts, M24Group, testing::ValuesIn(rows()), name_of<M24Kind>);

TEST(PlanM24Group, FitsAndSharesEverything) {
  for (const auto& [n, k] : plan_shapes(1, 4)) {
    for (const int64_t m : {1, 8, 9, 16, 32, 64, 65, 128, 1000, 8192}) {
      const PackedView w = m24_weight(n, k);
      SpmmCudaPlan p;
      const bool many = w.record_bytes >= 4096 * m24::kRecordBytes;
      EXPECT_EQ(most_tokens_cuda(w, kH100) > kMaxTokens, many);
      const bool planned = plan_spmm_cuda(w, m, kH100, &p).ok();
      EXPECT_EQ(planned, m <= most_tokens_cuda(w, kH100));
      const int64_t few = w.record_bytes >= 8192 * m24::kRecordBytes ? 32 : 64;
      EXPECT_EQ(p.layout >= 0, many && m <= few);
      EXPECT_EQ(p.many_layout >= 0, many && planned && m > few);
      ASSERT_TRUE(plan_m24_group(w, m, kH100, &p).ok());
      expect_plan_fits<M24Kind>(w, m, p);
    }
  }
  // Parts of a tile as a cluster: short ones of 64 rows, long ones of 128, which fill the device.
  const auto plan = [](int64_t n, int64_t k) {
    SpmmCudaPlan p;
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
  SpmmCudaPlan p;
  EXPECT_EQ(
      plan_spmm_cuda({.format = PackedFormat::m24, .rows = 16, .cols = 64}, 0, kH100, &p).code,
      Code::invalid_argument);
}

}  // namespace
}  // namespace tamis::test
