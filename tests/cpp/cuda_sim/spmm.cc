// Every row of kernels_cuda.def on the simulator against a double reference: real inputs within
// rounding, small integers bit for bit, guard pages round every array, NaN in every padding.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda_sim/row_test.h"

namespace tamis::test {
namespace {

class SpmmT16 : public RowTest {
 protected:
  void expect_right(const Problem& p, int32_t warps_k, int32_t splits) {
    Case c = case_of(p);
    SpmmCudaPlan plan;
    if (warps_k > 0) {
      plan = lay_out_spmm_t16(c.t16(), p.m, warps_k, splits);
    } else {
      ASSERT_TRUE(plan_spmm_t16(c.t16(), p.m, kH100, &plan).ok());
    }
    RowTest::expect_right(c, plan,
                          std::to_string(plan.warps_k) + " warps and " +
                              std::to_string(plan.splits) + " blocks over k");
  }
};

TEST_P(SpmmT16, ShapesAndDensities) {
  uint64_t seed = 100;
  for (const double sparsity : {0.0, 0.5, 0.9, 1.0}) {
    for (const auto& [n, k] : {std::pair{16, 64}, {17, 65}, {1, 8}, {50, 200}, {130, 321}}) {
      for (const bool integers : {false, true}) {
        expect_right({.n = n,
                      .k = k,
                      .m = 3,
                      .sparsity = sparsity,
                      .integers = integers,
                      .bias = integers,
                      .seed = ++seed},
                     0, 0);
      }
    }
  }
}

TEST_P(SpmmT16, Tokens) {
  uint64_t seed = 200;
  for (const int64_t m : {1, 2, 7, 8, 9, 16, 17, 32, 33, 64}) {
    expect_right({.n = 40, .k = 192, .m = m, .sparsity = 0.6, .integers = true, .seed = ++seed}, 0,
                 0);
    expect_right({.n = 40,
                  .k = 136,
                  .m = m,
                  .sparsity = 0.6,
                  .x_padding = 8,
                  .y_padding = 3,
                  .seed = ++seed},
                 2, 1);
  }
}

TEST_P(SpmmT16, PartsOfK) {
  uint64_t seed = 300;
  for (const int32_t warps_k : {1, 2, 4, 8}) {
    for (const int32_t splits : {1, 2, 3, 7}) {
      expect_right({.n = 150, .k = 450, .m = 5, .sparsity = 0.5, .x_padding = 1, .seed = ++seed},
                   warps_k, splits);
    }
  }
  expect_right({.n = 33, .k = 1100, .m = 20, .sparsity = 0.5, .seed = ++seed}, 4, 3);
}

// More records per warp than the ring has stages, so that stages are used again.
TEST_P(SpmmT16, LongRows) {
  expect_right({.n = 40, .k = 64 * 27, .m = 8, .sparsity = 0.5, .seed = 41}, 1, 1);
  expect_right({.n = 40, .k = 64 * 27, .m = 2, .sparsity = 0.3, .integers = true, .seed = 42}, 2,
               2);
}

TEST_P(SpmmT16, TwoRunsAgreeInEveryBit) {
  Case c = case_of({.n = 100, .k = 640, .m = 9, .sparsity = 0.5, .seed = 51});
  EXPECT_EQ(run_twice(GetParam(), c, lay_out_spmm_t16(c.t16(), 9, 4, 2)), "");
}

INSTANTIATE_TEST_SUITE_P(Rows, SpmmT16, testing::ValuesIn(tile_rows()), name_of);

class SpmmGap : public RowTest {
 protected:
  void expect_right(const Problem& p, int32_t warps) {
    Case c = case_of(p);
    RowTest::expect_right(c, lay_out_spmm_gap(c.t16(), p.m, warps),
                          std::to_string(p.parts) + " parts, " + std::to_string(warps) + " warps");
  }
};

TEST_P(SpmmGap, ShapesAndDensities) {
  uint64_t seed = 600;
  for (const double sparsity : {0.0, 0.5, 0.9, 0.99, 1.0}) {
    for (const auto& [n, k] : {std::pair{32, 64}, {33, 65}, {1, 8}, {50, 200}, {130, 321}}) {
      for (const int64_t m : {1, 2, 3, 4}) {
        for (const bool integers : {false, true}) {
          expect_right({.n = n,
                        .k = k,
                        .m = m,
                        .sparsity = sparsity,
                        .integers = integers,
                        .bias = integers,
                        .x_padding = m == 2   ? 8
                                     : m == 3 ? 3
                                              : 0,
                        .y_padding = m == 3 ? 5 : 0,
                        .seed = ++seed},
                       8);
        }
      }
    }
  }
}

// Parts shared out over warps and blocks, fewer steps than parts, and many steps a part.
TEST_P(SpmmGap, Parts) {
  uint64_t seed = 700;
  for (const int32_t parts : {1, 2, 8, 16, 64}) {
    for (const int32_t warps : {4, 8, 16}) {
      if (warps > parts) continue;
      for (const int64_t m : {1, 4}) {
        expect_right({.n = 70, .k = 900, .m = m, .sparsity = 0.5, .parts = parts, .seed = ++seed},
                     warps);
      }
    }
  }
  expect_right({.n = 40, .k = 3000, .m = 2, .sparsity = 0.2, .parts = 4, .seed = ++seed}, 4);
}

TEST_P(SpmmGap, TwoRunsAgreeInEveryBit) {
  Case c = case_of({.n = 100, .k = 640, .m = 4, .sparsity = 0.5, .parts = 32, .seed = 52});
  EXPECT_EQ(run_twice(GetParam(), c, lay_out_spmm_gap(c.t16(), 4, 8)), "");
}

INSTANTIATE_TEST_SUITE_P(Rows, SpmmGap, testing::ValuesIn(gap_rows()), name_of);

TEST(ExpandT16, EqualsUnpack) {
  uint64_t seed = 400;
  for (const PackedFormat format : {PackedFormat::t16, PackedFormat::m24}) {
    for (const double sparsity : {0.0, 0.5, 0.95, 1.0}) {
      for (const auto& [n, k] : {std::pair{16, 64}, {17, 65}, {3, 5}, {50, 200}, {40, 256}}) {
        for (const int64_t padding : {0, 3}) {
          Case c({.n = n, .k = k, .m = 1, .sparsity = sparsity, .format = format, .seed = ++seed});
          const int64_t width = c.problem().k, stride = width + padding;
          Guarded<uint16_t> out(static_cast<size_t>((n - 1) * stride + width));
          std::fill(out.span().begin(), out.span().end(), kNotWritten);
          const ExpandT16Params p = expand_t16_params(c.t16(), out.data(), stride);
          const auto blocks =
              static_cast<uint32_t>(ceil_div(p.row_tiles * p.col_tiles, kBlockWarps));
          const sim::Launch launch{
              .grid = {blocks},
              .block = {kBlockThreads},
              .shared_bytes = static_cast<size_t>(kBlockWarps) * static_cast<size_t>(p.stage_bytes),
              .seed = seed};
          const bool t16 = format == PackedFormat::t16;
          ASSERT_EQ(sim::launch(launch, [&] { t16 ? expand_t16(p) : expand_m24(p); }), "");
          if (!t16) {
            std::vector<uint16_t> unpacked(c.dense().size());
            m24::unpack(n, width, c.t16().records, unpacked.data(), width);
            ASSERT_EQ(unpacked, c.dense());
          }
          expect_dense(c, out.span(), stride);
        }
      }
    }
  }
}

TEST(ExpandGap, FillsZeros) {
  uint64_t seed = 450;
  for (const double sparsity : {0.0, 0.5, 0.95, 1.0}) {
    for (const auto& [n, k, parts] :
         {std::array<int64_t, 3>{32, 64, 8}, {33, 65, 16}, {3, 5, 64}, {50, 1200, 8}}) {
      Case c({.n = n,
              .k = k,
              .m = 1,
              .sparsity = sparsity,
              .format = PackedFormat::gap,
              .parts = static_cast<int32_t>(parts),
              .seed = ++seed});
      const int64_t stride = n == 33 ? k + 3 : ceil_div(k, 8) * 8 + 8;
      Guarded<uint16_t> out(static_cast<size_t>((n - 1) * stride + k));
      std::fill(out.span().begin(), out.span().end(), kNotWritten);
      for (int64_t r = 0; r < n; ++r) std::fill_n(out.data() + r * stride, k, uint16_t{0});
      const ExpandGapParams p = expand_gap_params(c.t16(), out.data(), stride);
      const auto blocks = static_cast<uint32_t>(ceil_div(p.slices * p.parts, kGapExpandWarps));
      const sim::Launch launch{.grid = {blocks}, .block = {32 * kGapExpandWarps}, .seed = seed};
      ASSERT_EQ(sim::launch(launch, [&] { expand_gap(p); }), "");
      expect_dense(c, out.span(), stride);
    }
  }
}

TEST(ExpandG4, IsTheUnpackedGroupsRounded) {
  uint64_t seed = 500;
  for (const DType dtype : {DType::f16, DType::bf16}) {
    for (const double sparsity : {0.0, 0.5, 1.0}) {
      for (const auto& [n, k] : {std::pair{16, 64}, {17, 96}, {50, 224}}) {
        Case c({.n = n,
                .k = k,
                .m = 1,
                .sparsity = sparsity,
                .dtype = dtype,
                .format = PackedFormat::g4,
                .seed = ++seed});
        Guarded<uint16_t> out(static_cast<size_t>(n * k));
        std::fill(out.span().begin(), out.span().end(), uint16_t{0x7fff});
        const ExpandT16Params p = expand_t16_params(c.t16(), out.data(), k);
        const auto blocks = static_cast<uint32_t>(ceil_div(p.row_tiles * p.col_tiles, kBlockWarps));
        const sim::Launch launch{.grid = {blocks}, .block = {kBlockThreads}, .seed = seed};
        ASSERT_EQ(sim::launch(launch, [&] { expand_g4(p); }), "");
        const double eps = dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
        for (size_t i = 0; i < c.exact().size(); ++i) {
          ASSERT_NEAR(widened(out[i], dtype), c.exact()[i],
                      2 * eps * std::fabs(c.exact()[i]) + 0x1p-24)
              << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tamis::test
