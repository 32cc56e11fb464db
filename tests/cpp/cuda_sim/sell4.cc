// sell4: what its records hold, and its rows of kernels_cuda.def on the simulator: against the
// double reference, in every layout, with seeded bugs that must be noticed.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "cuda_sim/row_test.h"

namespace tamis::test {
namespace {

// The weights by the layout comment of sell4.h alone; -1 where none is stored.
std::vector<float> decoded(const PackedView& w) {
  std::vector<float> dense(static_cast<size_t>(w.rows * w.cols), 0);
  const int64_t slices = sell4::slices(w.rows);
  const uint32_t* rows = w.offsets + slices + 1;
  for (int64_t s = 0; s < slices; ++s) {
    for (int64_t r = w.offsets[s]; r < w.offsets[s + 1]; ++r) {
      const auto* record = static_cast<const uint32_t*>(w.records) + 384 * r;
      for (int64_t lane = 0; lane < 32; ++lane) {
        for (int64_t step = 0; step < 4; ++step) {
          const uint32_t unit = record[256 + 4 * lane + step];
          const float scale = f32_from_f16(static_cast<uint16_t>(unit));
          if (scale == 0) continue;
          const auto zero = static_cast<float>(unit >> 16 & 15u);
          for (int64_t j = 0; j < 16; ++j) {
            const uint32_t word = record[128 * (step / 2) + 4 * lane + 2 * (step % 2) + j / 8];
            const auto code = static_cast<float>(word >> (j % 8 / 2 * 4 + j % 2 * 16) & 15u);
            float& to = dense[rows[32 * s + lane] * w.cols + 16 * (unit >> 20) + j];
            if (to != 0) ADD_FAILURE() << "a column twice";
            to = scale * (code - zero);
          }
        }
      }
    }
  }
  return dense;
}

TEST(Sell4, HoldsEveryGroupOnce) {
  uint64_t seed = 10;
  for (const double sparsity : {0.0, 0.5, 0.9, 1.0}) {
    for (const auto& [n, k] :
         {std::pair{32, 64}, {1, 32}, {33, 96}, {130, 1056}, {1057, 96}, {2113, 96}}) {
      Case c({.n = n,
              .k = k,
              .m = 1,
              .sparsity = sparsity,
              .format = PackedFormat::sell4,
              .seed = ++seed});
      ASSERT_EQ(decoded(c.t16()), c.exact()) << n << " x " << k << ", seed " << seed;
    }
  }
}

// Wavefronts of 16 byte reads of x by eight lanes a step, against the calculated best of 1.
double waves_a_read(int64_t n, int64_t k) {
  Case c({.n = n, .k = k, .m = 1, .sparsity = 0.5, .format = PackedFormat::sell4, .seed = 3});
  const PackedView& w = c.t16();
  int64_t waves = 0, reads = 0;
  for (int64_t r = 0; r < w.record_bytes / sell4::kRecordBytes; ++r) {
    const auto* units = static_cast<const uint32_t*>(w.records) + 384 * r + 256;
    for (int64_t step = 0; step < 4; ++step) {
      for (int64_t quarter = 0; quarter < 4; ++quarter) {
        std::array<int, 8> lanes{};
        for (int64_t lane = 8 * quarter; lane < 8 * quarter + 8; ++lane) {
          const uint32_t unit = units[4 * lane + step];
          if ((unit & 0xffffu) != 0) ++lanes[unit >> 20 & 7u];
        }
        waves += std::max(1, *std::max_element(lanes.begin(), lanes.end()));
        ++reads;
      }
    }
  }
  return static_cast<double>(waves) / static_cast<double>(reads);
}

// Many rows have slices of rows with as many units each, whose lanes cannot wait for a bank; four
// lanes a row have fewer rows to choose from.
TEST(Sell4, LanesReadOtherBanks) {
  EXPECT_EQ(sell4::lanes_of_row(2113), 1);
  EXPECT_LE(waves_a_read(2113, 4096), 1.13);
  EXPECT_EQ(sell4::lanes_of_row(64), 4);
  EXPECT_LE(waves_a_read(64, 4096), 1.112);
}

TEST(Sell4, PackRefusesWhatItCannotSay) {
  std::vector<uint64_t> mask(1, 0);
  const std::vector<int64_t> offsets(2, 0);
  MatrixView a{.format = Format::groupq,
               .rows = 1,
               .cols = sell4::kMaxColumns + 16,
               .dtype = DType::u4,
               .mask = mask.data(),
               .row_offsets = offsets.data(),
               .group_size = 16};
  t16::Sizes sizes;
  EXPECT_EQ(sell4::pack_sizes(a, &sizes).code, Code::no_kernel);
  a.dtype = DType::u8;
  EXPECT_EQ(sell4::pack_sizes(a, &sizes).code, Code::invalid_argument);
}

class SpmmSell4 : public RowTest {
 protected:
  void expect_right(const Problem& p, int32_t warps, int32_t parts = 1) {
    Case c = case_of(p);
    SpmmCudaPlan plan;
    ASSERT_TRUE(plan_spmm_cuda(c.t16(), p.m, kH100, &plan).ok());
    if (warps > 0) plan = lay_out_spmm_sell4(c.t16(), p.m, warps, parts);
    RowTest::expect_right(c, plan, std::to_string(plan.warps_k) + " warps");
  }
};

TEST_P(SpmmSell4, ShapesAndDensities) {
  uint64_t seed = 100;
  for (const double sparsity : {0.0, 0.5, 0.9, 1.0}) {
    for (const auto& [n, k] : {std::pair{32, 128}, {1, 32}, {33, 96}, {50, 224}, {130, 352}}) {
      for (const bool integers : {false, true}) {
        expect_right({.n = n,
                      .k = k,
                      .m = 3,
                      .sparsity = sparsity,
                      .integers = integers,
                      .bias = integers,
                      .seed = ++seed},
                     0);
      }
    }
  }
}

TEST_P(SpmmSell4, TokensAndStrides) {
  uint64_t seed = 200;
  for (const int64_t m : {1, 2, 3, 4, 5, 7, 8}) {
    for (const int64_t padding : {0, 1, 8}) {
      expect_right({.n = 40,
                    .k = 192,
                    .m = m,
                    .sparsity = 0.6,
                    .x_padding = padding,
                    .y_padding = padding,
                    .seed = ++seed},
                   0);
    }
  }
}

// A row by four lanes, as all rows of the other tests, by two and by one.
TEST_P(SpmmSell4, LanesOfARow) {
  uint64_t seed = 250;
  for (const auto& [n, lanes] : {std::pair{1056, 4}, {1057, 2}, {2112, 2}, {2113, 1}}) {
    ASSERT_EQ(sell4::lanes_of_row(n), lanes);
    expect_right({.n = n, .k = 96, .m = 2, .sparsity = 0.5, .seed = ++seed}, 0);
  }
}

// Fewer and more records than warps, and more of them than registers hold.
TEST_P(SpmmSell4, Layouts) {
  uint64_t seed = 300;
  for (const int64_t m : {1, 2, 4, 8}) {
    for (const int32_t warps : {1, 2, 4, 8, 20}) {
      expect_right({.n = 70, .k = 1600, .m = m, .sparsity = 0.5, .seed = ++seed}, warps);
      if (warps < 4) {  // as clusters
        for (const int32_t parts : {2, 4}) {
          expect_right({.n = 70, .k = 1600, .m = m, .sparsity = 0.5, .seed = ++seed}, warps, parts);
        }
      }
    }
  }
}

TEST_P(SpmmSell4, TwoRunsAgreeInEveryBit) {
  Case c = case_of({.n = 100, .k = 640, .m = 3, .sparsity = 0.5, .seed = 51});
  EXPECT_EQ(run_twice(GetParam(), c, lay_out_spmm_sell4(c.t16(), 3, 4)), "");
}

// x beyond the range of f16 and far below its smallest normal number.
TEST_P(SpmmSell4, ScalesOfX) {
  const DType dtype = GetParam().dtype;
  for (const float scale :
       {0x1p-122f, 0x1p-100f, 0x1p-14f, 0x1p-8f, 0x1p-6f, 0x1p7f, 0x1p10f, 0x1p60f}) {
    if (dtype == DType::f16 && (scale < 0x1p-14f || scale > 0x1p10f)) continue;
    Case c({.n = 40,
            .k = 320,
            .m = 2,
            .sparsity = 0.5,
            .dtype = dtype,
            .format = GetParam().format,
            .bias = false,
            .seed = 61});
    c.scale_x(scale);
    const SpmmCudaPlan plan = lay_out_spmm_sell4(c.t16(), 2, 4);
    EXPECT_EQ(run(GetParam(), c, plan, 1), "") << scale;
  }
}

TEST_P(SpmmSell4, SeededBugsAreNoticed) {
  Case c = case_of({.n = 70, .k = 1536, .m = 2, .sparsity = 0.4, .seed = 71});
  SpmmCudaPlan plan = lay_out_spmm_sell4(c.t16(), 2, 8);
  const auto noticed = [&](const sim::Faults& faults) { return RowTest::noticed(c, plan, faults); };
  EXPECT_EQ(noticed({}), 0);
  EXPECT_GT(noticed({.barrier = 0}), 0) << "before x and the largest of it are read";
  EXPECT_GT(noticed({.barrier = 1}), 0) << "before sums overwrite x";
  EXPECT_GT(noticed({.barrier = 2}), 0) << "before sums are read";
  c.scale_x(256);
  EXPECT_EQ(noticed({}), 0);
  EXPECT_GT(noticed({.barrier = 1}), 0) << "after x was scaled";
  plan.shared_bytes -= 16;
  EXPECT_EQ(noticed({}), 8) << "shared memory too small";
}

TEST_P(SpmmSell4, SeededBugsOfClustersAreNoticed) {
  Case c = case_of({.n = 70, .k = 1536, .m = 2, .sparsity = 0.4, .seed = 72});
  SpmmCudaPlan plan = lay_out_spmm_sell4(c.t16(), 2, 4, 2);
  const auto noticed = [&](const sim::Faults& faults) { return RowTest::noticed(c, plan, faults); };
  EXPECT_EQ(noticed({}), 0);
  EXPECT_EQ(noticed({.cluster = 0}), 8) << "no meeting";
  EXPECT_EQ(noticed({.wait = 0}), 8) << "sums that the other block sends";
  for (const int i : {0, 3}) EXPECT_EQ(noticed({.send = i}), 8) << "no sum " << i;
  plan.shared_bytes -= 32;
  EXPECT_EQ(noticed({}), 8) << "shared memory too small";
}

INSTANTIATE_TEST_SUITE_P(Rows, SpmmSell4, testing::ValuesIn(sell4_rows()), name_of);

TEST(PlanSell4, FitsEveryDeviceOrSaysWhyNot) {
  for (const CudaDevice& device : {kH100, kA100, kL40}) {
    for (const auto& [n, k] : {std::pair{1, 32},
                               {1024, 4096},
                               {4096, 4096},
                               {14336, 4096},
                               {4096, 14336},
                               {128256, 4096}}) {
      const int64_t records = sell4::slices(n) * ceil_div(k, 128);
      const PackedView w{.format = PackedFormat::sell4,
                         .rows = n,
                         .cols = k,
                         .record_bytes = records * sell4::kRecordBytes};
      for (const int64_t m : {1, 2, 4, 8}) {
        SpmmCudaPlan p;
        const Status planned = plan_spmm_cuda(w, m, device, &p);
        EXPECT_EQ(planned.ok(), p.shared_bytes <= device.shared_per_block) << n << " x " << k;
        EXPECT_EQ(p.blocks_n, sell4::slices(n));
        const bool few = device.capability >= 90 && n <= 528;  // half of the device, or less
        EXPECT_EQ(p.splits, few ? 2 : 1) << n << " x " << k << ", " << device.capability;
        EXPECT_GE(p.tokens, m);
        EXPECT_LE(p.warps_k, sell4_most_warps(p.tokens));
      }
      SpmmCudaPlan p;
      EXPECT_EQ(plan_spmm_cuda(w, 9, device, &p).code, Code::invalid_argument);
    }
  }
}

// Half of the groups of q, o: two turns of 17 warps, and a fifth more; more rows fill the device.
TEST(PlanSell4, NoMoreWarpsThanTurnsNeed) {
  const auto warps = [](int64_t n, int64_t records_of_slice, int64_t m) {
    const PackedView w{.format = PackedFormat::sell4,
                       .rows = n,
                       .cols = 4096,
                       .record_bytes = sell4::slices(n) * records_of_slice * sell4::kRecordBytes};
    SpmmCudaPlan p;
    EXPECT_TRUE(plan_spmm_sell4(w, m, kH100, &p).ok());
    return p.warps_k;
  };
  EXPECT_EQ(warps(4096, 33, 1), 20);
  EXPECT_EQ(warps(4096, 33, 2), 20);
  EXPECT_EQ(warps(4096, 33, 4), 16);
  EXPECT_EQ(warps(14336, 33, 1), 8);
  EXPECT_EQ(warps(4096, 113, 1), 32);
  EXPECT_EQ(warps(1024, 9, 1), 16) << "four lanes a row";
  EXPECT_EQ(warps(512, 9, 1), 4) << "by two blocks";
}

TEST(ExpandSell4, IsTheUnpackedGroupsRounded) {
  uint64_t seed = 500;
  for (const DType dtype : {DType::f16, DType::bf16}) {
    for (const double sparsity : {0.0, 0.5, 1.0}) {
      for (const auto& [n, k, padding] :
           {std::array<int64_t, 3>{32, 64, 0}, {17, 96, 3}, {50, 224, 8}}) {
        Case c({.n = n,
                .k = k,
                .m = 1,
                .sparsity = sparsity,
                .dtype = dtype,
                .format = PackedFormat::sell4,
                .seed = ++seed});
        const int64_t stride = k + padding;
        Guarded<uint16_t> out(static_cast<size_t>((n - 1) * stride + k));
        std::fill(out.span().begin(), out.span().end(), uint16_t{0});
        const ExpandSell4Params p = expand_sell4_params(c.t16(), out.data(), stride);
        const sim::Launch launch{.grid = {static_cast<uint32_t>(sell4::slices(n))},
                                 .block = {32 * kSell4ExpandWarps},
                                 .seed = seed};
        ASSERT_EQ(sim::launch(launch, [&] { expand_sell4(p); }), "");
        for (int64_t r = 0; r < n; ++r) {
          for (int64_t col = 0; col < k; ++col) {
            const float wanted = c.exact()[static_cast<size_t>(r * k + col)];
            ASSERT_EQ(widened(out[r * stride + col], dtype),
                      widened(narrowed(wanted, dtype), dtype))
                << r << ", " << col;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tamis::test
