// p24: its rows of kernels_cuda.def on the simulator against the double reference, in every layout.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>

#include "cuda_sim/row_test.h"

namespace tamis::test {
namespace {

class SpmmP24 : public RowTest {
 protected:
  void expect_right(Problem p, int32_t block_tiles, int32_t warps, bool cluster = false) {
    Case c = case_of(p);
    // Without and with warps that only copy x, and with sums over x and behind it.
    for (const auto& [most, room] : {std::pair{1, 0}, {kMaxP24Warps, kH100.shared_per_block}}) {
      const SpmmCudaPlan plan =
          lay_out_spmm_p24(c.t16(), p.m, block_tiles, warps, cluster, most, 0, 1, room);
      EXPECT_EQ(plan.warp_sums_at > kP24XAt, room > 0);
      EXPECT_EQ(run(GetParam(), c, plan, p.seed), "")
          << label(p) << ", " << p.parts << " panels, " << block_tiles << " tiles, " << warps
          << " warps of " << plan.block_warps << (cluster ? ", clusters" : "");
    }
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
          for (const bool cluster : {false, true}) {
            expect_right({.n = 70,
                          .k = 900,
                          .m = cluster      ? 13
                               : warps == 1 ? 5
                               : tiles == 3 ? 22
                                            : 29,
                          .sparsity = sparsity,
                          .parts = panels,
                          .seed = ++seed},
                         tiles, warps, cluster && panels > 1);
          }
        }
      }
    }
  }
  expect_right({.n = 20, .k = 4096, .m = 16, .sparsity = 0.5, .parts = 1, .seed = ++seed}, 1, 8);
}

// Columns of x that follow while records are multiplied, in whole stages and not.
TEST_P(SpmmP24, ColumnsThatFollow) {
  uint64_t seed = 1100;
  for (const int64_t m : {9, 16}) {
    for (const double sparsity : {0.5, 0.7}) {
      for (const auto& [k, panels] : {std::pair{2000, 1}, {2808, 2}}) {
        for (const auto& [first, warps] : {std::pair{64, 1}, {512, 3}}) {
          Case c = case_of(
              {.n = 50, .k = k, .m = m, .sparsity = sparsity, .parts = panels, .seed = ++seed});
          const SpmmCudaPlan plan = lay_out_spmm_p24(c.t16(), m, 2, warps, false, 2 * warps + 3,
                                                     first, 1, m > 9 ? kH100.shared_per_block : 0);
          EXPECT_EQ(run(GetParam(), c, plan, seed), "")
              << "k " << k << ", m " << m << ", sparsity " << sparsity << ", first " << first;
        }
      }
    }
  }
}

// More tokens than other forms take: clusters of panels, and halves of wide panels that blocks
// share.
TEST_P(SpmmP24, ManyTokens) {
  uint64_t seed = 5000;
  for (const int64_t m : {30, 37, 48, 50}) {
    for (const double sparsity : {0.5, 0.7}) {
      for (const auto& [k, panels] : {std::pair{700, 3}, {2300, 1}, {4400, 2}}) {
        const int32_t shares = p24::halves_of(p24::panel_cols(k, panels));
        Case c = case_of({.n = 36,
                          .k = k,
                          .m = m,
                          .sparsity = sparsity,
                          .parts = panels,
                          .x_padding = m == 48 ? 8 : 3,
                          .seed = ++seed});
        for (const auto& [tiles, warps, cluster] :
             {std::tuple{3, 2, shares == 1}, {2, 1, true}, {3, 1, true}}) {
          const SpmmCudaPlan plan =
              lay_out_spmm_p24(c.t16(), m, tiles, warps, cluster, 7, 0, shares);
          EXPECT_EQ(run(GetParam(), c, plan, seed), "")
              << "k " << k << ", m " << m << ", sparsity " << sparsity << ", " << tiles << " tiles"
              << (cluster ? ", clusters" : "");
        }
      }
    }
  }
}

// Whole panels and halves, rows and columns that end inside a tile, unaligned rows.
TEST_P(SpmmP24, WrittenOutIsTheWeight) {
  uint64_t seed = 6000;
  for (const double sparsity : {0.0, 0.5, 0.7, 0.95, 1.0}) {
    for (const auto& [n, k, panels, padding] : {std::array<int64_t, 4>{16, 64, 1, 0},
                                                {17, 65, 1, 3},
                                                {3, 5, 1, 0},
                                                {50, 904, 3, 8},
                                                {20, 2300, 1, 4},
                                                {9, 4096, 1, 0}}) {
      Case c = case_of({.n = n,
                        .k = k,
                        .m = 1,
                        .sparsity = sparsity,
                        .parts = static_cast<int32_t>(panels),
                        .seed = ++seed});
      const int64_t stride = k + padding;
      Guarded<uint16_t> out(static_cast<size_t>((n - 1) * stride + k));
      std::fill(out.span().begin(), out.span().end(), kNotWritten);
      const ExpandP24Params p = expand_p24_params(c.t16(), out.data(), stride);
      const sim::Launch launch{.grid = {static_cast<uint32_t>(2 * t16::row_tiles(n) * panels)},
                               .block = {32 * kP24ExpandWarps},
                               .shared_bytes = static_cast<size_t>(p24_expand_bytes(p.panel_cols)),
                               .seed = seed};
      const bool triples = c.t16().max_record_bytes == p24::kTripleBytes;
      ASSERT_EQ(sim::launch(launch, [&] { triples ? expand_p24<true>(p) : expand_p24<false>(p); }),
                "");
      expect_dense(c, out.span(), stride);
    }
  }
}

TEST_P(SpmmP24, SeededBugsOfColumnsThatFollowAreNoticed) {
  Case c = case_of({.n = 40, .k = 300, .m = 16, .sparsity = 0.5, .parts = 1, .seed = 1200});
  SpmmCudaPlan plan = lay_out_spmm_p24(c.t16(), 16, 2, 2, false, 6, 64);
  const auto noticed = [&](const sim::Faults& faults) { return RowTest::noticed(c, plan, faults); };
  EXPECT_EQ(noticed({}), 0);
  EXPECT_GT(noticed({.wait = 0}), 0) << "for the only stage";
  EXPECT_EQ(noticed({.arrival = 0}), 8) << "of the first piece";
}

TEST_P(SpmmP24, TwoRunsAgreeInEveryBit) {
  Case c = case_of({.n = 100, .k = 640, .m = 9, .sparsity = 0.5, .parts = 2, .seed = 53});
  EXPECT_EQ(run_twice(GetParam(), c, lay_out_spmm_p24(c.t16(), 9, 2, 2)), "");
  EXPECT_EQ(run_twice(GetParam(), c, lay_out_spmm_p24(c.t16(), 9, 2, 2, true)), "");
}

TEST_P(SpmmP24, SeededBugsOfClustersAreNoticed) {
  Case c = case_of({.n = 100, .k = 640, .m = 9, .sparsity = 0.5, .parts = 2, .seed = 54});
  SpmmCudaPlan plan = lay_out_spmm_p24(c.t16(), 9, 2, 2, true);
  const auto noticed = [&](const sim::Faults& faults) { return RowTest::noticed(c, plan, faults); };
  EXPECT_EQ(noticed({}), 0);
  for (const int i : {0, 1, 2}) EXPECT_GT(noticed({.barrier = i}), 0) << "no barrier " << i;
  EXPECT_EQ(noticed({.cluster = 0}), 8) << "no meeting";
  EXPECT_EQ(noticed({.wait = 0}), 8) << "sums that others send";
  for (const int i : {0, 3}) EXPECT_EQ(noticed({.send = i}), 8) << "no sum " << i;
  plan.shared_bytes /= 2;
  EXPECT_EQ(noticed({}), 8) << "shared memory too small";
}

TEST_P(SpmmP24, SeededBugsOfSumsOverXAreNoticed) {
  Case c = case_of({.n = 64, .k = 2300, .m = 30, .sparsity = 0.5, .parts = 1, .seed = 55});
  const SpmmCudaPlan plan = lay_out_spmm_p24(c.t16(), 30, 2, 1, true, 4, 0, 2);
  const auto noticed = [&](const sim::Faults& faults) { return RowTest::noticed(c, plan, faults); };
  EXPECT_EQ(noticed({}), 0);
  EXPECT_GT(noticed({.cluster = 0}), 0) << "while another block reads x";
  EXPECT_EQ(noticed({.wait = 0}), 8) << "sums that others send";
}

// What plans look at of a weight.
PackedView planned(int64_t rows, int64_t cols, int64_t record_bytes = 0) {
  return {.format = PackedFormat::p24,
          .rows = rows,
          .cols = cols,
          .parts = p24::panels_of(rows, cols),
          .max_record_bytes = record_bytes};
}

// Panels that only share out few row tiles are clusters, two blocks of which find room on an SM.
TEST(PlanP24, ClustersWhereRowTilesAreFew) {
  const auto plan = [](int64_t rows, int64_t cols, int32_t panels, const CudaDevice& device) {
    const PackedView w{.format = PackedFormat::p24, .rows = rows, .cols = cols, .parts = panels};
    SpmmCudaPlan p;
    EXPECT_TRUE(plan_spmm_cuda(w, 16, device, &p).ok()) << rows << " x " << cols;
    return p;
  };
  for (const auto& [rows, cols] : {std::pair{1024, 4096}, {512, 4096}, {2048, 4096}, {64, 8192}}) {
    const int32_t panels = p24::panels_of(rows, cols);
    const SpmmCudaPlan p = plan(rows, cols, panels, kH100);
    EXPECT_TRUE(p.cluster) << rows << " x " << cols;
    EXPECT_EQ(p.workspace_bytes, 0);
    EXPECT_GE(p.blocks_n * p.warps_n, t16::row_tiles(rows));
    EXPECT_LE(p.blocks_n * p.splits, kH100.sms);
    EXPECT_LE(p.warps_n * p.warps_k, kMaxP24Warps / 2);
    EXPECT_LE(2 * (p.shared_bytes + 1024), kH100.shared_per_sm);
    EXPECT_FALSE(plan(rows, cols, panels, kA100).cluster) << "no clusters there";
  }
  EXPECT_FALSE(plan(4096, 4096, 1, kH100).cluster);
  EXPECT_FALSE(plan(2048, 8192, 2, kH100).cluster) << "one block of 16 tokens fills an SM";
  EXPECT_FALSE(plan(4096, 14336, 4, kH100).cluster);
  EXPECT_FALSE(plan(64, 16384, 16, kH100).cluster) << "more panels than blocks of a cluster";
}

// Up to twelve warps of a block, of one of three fewer of a row tile. Clusters of two take all SMs.
// Sums of warps lie over x where two blocks would not find room beside those behind it.
TEST(PlanP24, BlocksOfClusters) {
  const auto plan = [](int64_t rows, int64_t cols, int64_t m, int64_t record_bytes) {
    const PackedView w = planned(rows, cols, record_bytes);
    SpmmCudaPlan p;
    EXPECT_TRUE(plan_spmm_p24(w, m, kH100, &p).ok());
    EXPECT_TRUE(p.cluster) << rows << " x " << cols << ", m " << m;
    EXPECT_LE(m > 32 ? p.shared_bytes : 2 * (p.shared_bytes + 1024), kH100.shared_per_sm);
    return std::array{p.warps_n, p.warps_k, p.warp_sums_at > kP24XAt ? 1 : 0};
  };
  for (const bool pairs : {false, true}) {
    const int64_t bytes = pairs ? p24::kPairBytes : p24::kTripleBytes;
    for (const int64_t m : {1, 8, 16}) EXPECT_EQ(plan(1024, 4096, m, bytes), (std::array{3, 3, 1}));
    EXPECT_EQ(plan(1024, 4096, 24, bytes), (std::array{3, pairs ? 3 : 4, 1}));
    for (const int64_t m : {32, 48}) EXPECT_EQ(plan(1024, 4096, m, bytes), (std::array{3, 4, 1}));
    for (const int64_t m : {1, 16, 24}) {
      EXPECT_EQ(plan(2048, 4096, m, bytes)[0], 2);
      EXPECT_EQ(plan(2048, 4096, m, bytes)[1], pairs ? 6 : 4);
    }
    EXPECT_EQ(plan(2048, 4096, 48, bytes), (std::array{2, 4, 1}));
    EXPECT_EQ(plan(512, 4096, 16, bytes), (std::array{2, 3, 1}));
    EXPECT_EQ(plan(1024, 7680, 24, bytes), (std::array{3, pairs ? 3 : 4, pairs ? 1 : 0}));
  }
}

// 24 tokens of 4096 columns fit, 48 of half of them, 32 of 3624; 64 of 1024.
TEST(PlanP24, TakesAsManyTokensAsFit) {
  const auto takes = [](int64_t rows, int64_t cols, int64_t m, const CudaDevice& device) {
    const PackedView w = planned(rows, cols);
    SpmmCudaPlan p;
    const bool ok = plan_spmm_cuda(w, m, device, &p).ok();
    EXPECT_TRUE(!ok || (p.tokens >= m && p.shared_bytes <= device.shared_per_block));
    return ok;
  };
  EXPECT_TRUE(takes(14336, 4096, 24, kH100));
  EXPECT_TRUE(takes(14336, 4096, 48, kH100));
  EXPECT_FALSE(takes(14336, 4096, 49, kH100));
  EXPECT_TRUE(takes(4096, 14336, 32, kH100));
  EXPECT_TRUE(takes(4096, 14336, 48, kH100));
  EXPECT_TRUE(takes(1024, 4096, 64, kH100));
  EXPECT_FALSE(takes(1024, 4096, 65, kH100));
  EXPECT_TRUE(takes(14336, 4096, 16, kA100));
  EXPECT_FALSE(takes(14336, 4096, 24, kA100));
}

// Blocks share a panel only where x of all of it does not fit, as clusters if it is the only one.
TEST(PlanP24, HalvesWhereAPanelDoesNotFit) {
  const auto plan = [](int64_t rows, int64_t cols, int64_t m, int64_t record_bytes) {
    const PackedView w = planned(rows, cols, record_bytes);
    SpmmCudaPlan p;
    EXPECT_TRUE(plan_spmm_p24(w, m, kH100, &p).ok());
    return std::array{p.splits / w.parts, p.warps_n, p.warps_k, p.cluster ? 1 : 0};
  };
  // One of three by fewer warps from 17 tokens on.
  for (const auto& [record_bytes, fewer] :
       {std::pair{p24::kPairBytes, 0}, {p24::kTripleBytes, 1}}) {
    EXPECT_EQ(plan(14336, 4096, 24, record_bytes), (std::array{1, 7, 3 - fewer, 0}));
    EXPECT_EQ(plan(4096, 4096, 24, record_bytes), (std::array{1, 2, 10 - 2 * fewer, 0}));
    EXPECT_EQ(plan(14336, 4096, 25, record_bytes), (std::array{2, 14, 1, 1}));
    EXPECT_EQ(plan(4096, 4096, 32, record_bytes), (std::array{2, 4, 3, 1}));
    EXPECT_EQ(plan(4096, 4096, 48, record_bytes), (std::array{2, 4, 3 - fewer, 1}));
    EXPECT_EQ(plan(4096, 14336, 32, record_bytes), (std::array{1, 8, 3 - fewer, 0}));
    EXPECT_EQ(plan(4096, 14336, 33, record_bytes), (std::array{2, 16, 1, 0}));
    EXPECT_EQ(plan(1024, 4096, 48, record_bytes), (std::array{1, 3, 4, 1}));
  }
  for (const auto& [rows, cols] :
       {std::pair{14336, 4096}, {4096, 14336}, {1024, 4096}, {64, 100}}) {
    const PackedView w = planned(rows, cols);
    const int64_t most = most_p24_tokens(rows, cols);
    SpmmCudaPlan p;
    EXPECT_TRUE(plan_spmm_p24(w, most, kH100, &p).ok()) << rows << " x " << cols;
    EXPECT_FALSE(plan_spmm_p24(w, most + 1, kH100, &p).ok()) << rows << " x " << cols;
  }
}

TEST(PlanP24, WarpsThatOnlyCopy) {
  const auto warps = [](int64_t rows, int64_t cols, int64_t m, const CudaDevice& device,
                        int64_t record_bytes = p24::kTripleBytes) {
    const PackedView w = planned(rows, cols, record_bytes);
    SpmmCudaPlan p;
    EXPECT_TRUE(plan_spmm_p24(w, m, device, &p).ok());
    return std::array{p.warps_n, p.warps_k, p.block_warps, p.first_cols};
  };
  // 4096 columns of 16 tokens are 64 times what a warp copies: three rounds of 22 warps.
  CudaDevice early = kH100;
  early.capability = 89;
  EXPECT_EQ(warps(14336, 4096, 16, early), (std::array{7, 3, 22, 0}));
  EXPECT_EQ(warps(4096, 4096, 16, early), (std::array{2, 8, 22, 0}));
  EXPECT_EQ(warps(4096, 4096, 8, early), (std::array{2, 10, 20, 0}));
  EXPECT_EQ(warps(4096, 14336, 16, early), (std::array{8, 3, 24, 0}));
  // Where columns follow, as many as the others leave, after a round of all warps.
  EXPECT_EQ(warps(14336, 4096, 16, kH100), (std::array{7, 3, 24, 1536}));
  EXPECT_EQ(warps(4096, 14336, 16, kH100), (std::array{8, 2, 24, 1536}));
  EXPECT_EQ(warps(14336, 2048, 16, kH100), (std::array{7, 3, 24, 1024})) << "half of all";
  EXPECT_EQ(warps(4096, 4096, 16, kH100), (std::array{2, 8, 22, 0})) << "too short";
  EXPECT_EQ(warps(4096, 4096, 16, kH100, p24::kPairBytes), (std::array{2, 8, 24, 1536}));
  EXPECT_EQ(warps(5120, 4096, 16, kH100, p24::kPairBytes), (std::array{3, 6, 24, 1536}));
  EXPECT_EQ(warps(4096, 4096, 8, kH100, p24::kPairBytes), (std::array{2, 10, 20, 0}));
  EXPECT_EQ(warps(14336, 4096, 8, kH100), (std::array{7, 3, 21, 0})) << "too few tokens";
}

TEST_P(SpmmP24, SeededBugsAreNoticed) {
  Case c = case_of({.n = 40, .k = 900, .m = 6, .sparsity = 0.5, .parts = 2});
  const SpmmCudaPlan plan = lay_out_spmm_p24(c.t16(), 6, 2, 3);
  const auto noticed = [&](const sim::Faults& faults) { return RowTest::noticed(c, plan, faults); };
  EXPECT_EQ(noticed({}), 0);
  EXPECT_GT(noticed({.barrier = 0}), 0) << "after x was written";
  EXPECT_GT(noticed({.barrier = 1}), 0) << "before sums overwrite x";
  EXPECT_GT(noticed({.barrier = 2}), 0) << "before sums are read";
  EXPECT_EQ(noticed({.barrier = 3}), 8) << "before the ticket";
  EXPECT_EQ(noticed({.fence = 0}), 8) << "between the parts and the ticket";
}

INSTANTIATE_TEST_SUITE_P(Rows, SpmmP24, testing::ValuesIn(p24_rows()), name_of);

}  // namespace
}  // namespace tamis::test
