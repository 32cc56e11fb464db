// The bitmap kernel for warpgroups on the simulator.
#include "ops/spmm/bitmap_wgmma.cuh"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda_sim/warpgroups.h"

namespace tamis::test {
namespace {

struct BitmapKind {
  using Params = BitmapGroupParams;
  static constexpr PackedFormat kFormat = PackedFormat::bitmap;
  static constexpr const auto& kLayouts = kBitmapLayouts;
  static constexpr auto kLayOut = &lay_out_bitmap;
  static constexpr auto kParams = &bitmap_group_params;
};

std::vector<GroupRow<BitmapKind>> rows() {
  return layout_rows<GroupRow<BitmapKind>>({
#define TAMIS_BITMAP_LAYOUT(...)                                    \
  {&spmm_bitmap_group<BitmapGroupConfig<DType::bf16, __VA_ARGS__>>, \
   &spmm_bitmap_group<BitmapGroupConfig<DType::f16, __VA_ARGS__>>},
#include "ops/spmm/bitmap_layouts.def"
#undef TAMIS_BITMAP_LAYOUT
  });
}

class BitmapGroup : public GroupTest<BitmapKind> {};

TEST_P(BitmapGroup, ShapesAndShares) {
  shapes_and_shares();
}
TEST_P(BitmapGroup, Tokens) {
  tokens();
}
TEST_P(BitmapGroup, TwoRunsAgreeInEveryBit) {
  two_runs_agree();
}

TEST_P(BitmapGroup, FaultsAreNoticed) {
  Case c = case_of({.n = layout().rows(), .k = 1000, .m = 6, .sparsity = 0.5});
  // The first product is not waited for, and the simulator multiplies a panel a panel later, so
  // that a barrier after the first is not missed.
  faults_are_noticed(c, {{.product = 1}, {.product = 2}}, {{.barrier = 0}});
}

INSTANTIATE_TEST_SUITE_P(Layouts, BitmapGroup, testing::ValuesIn(rows()), name_of<BitmapKind>);

TEST(PlanBitmapGroup, FitsAndSharesEverything) {
  for (const auto& [n, k] : plan_shapes(8, 8)) {
    for (const int64_t m : {1, 17, 32, 64, 65, 128, 1000, 8192}) {
      const PackedView w{
          .format = PackedFormat::bitmap, .rows = n, .cols = k, .record_bytes = n * k};
      SpmmCudaPlan p;
      ASSERT_TRUE(plan_spmm_cuda(w, m, kH100, &p).ok());
      expect_plan_fits<BitmapKind>(w, m, p);
    }
  }
  const PackedView w{.format = PackedFormat::bitmap, .rows = 16, .cols = 64};
  SpmmCudaPlan p;
  EXPECT_EQ(plan_spmm_cuda(w, 0, kH100, &p).code, Code::invalid_argument);
  EXPECT_EQ(plan_spmm_cuda(w, 32, kA100, &p).code, Code::invalid_argument);
}

}  // namespace
}  // namespace tamis::test
