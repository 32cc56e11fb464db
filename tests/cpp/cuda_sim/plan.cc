// The plan of the t16 product: what a launch relies on, for every shape and device.
#include <gtest/gtest.h>

#include "cuda_sim/problem.h"

namespace tamis::test {
namespace {

// A weight of that shape and density, without its records.
PackedView shape(int64_t rows, int64_t cols, double density) {
  const int64_t record = t16::kHeaderBytes + static_cast<int64_t>(2048 * density);
  return {.rows = rows,
          .cols = cols,
          .record_bytes = t16::row_tiles(rows) * t16::col_tiles(cols) * record,
          .max_record_bytes = std::min(record + 160, t16::kMaxRecordBytes) / 16 * 16};
}

TEST(PlanT16, FitsEveryDevice) {
  for (const CudaDevice& device : {kH100, kA100, kL40}) {
    for (const auto& [n, k] : plan_shapes(1, 1)) {
      for (const double density : {0.1, 0.5, 1.0}) {
        for (const int64_t m : {1, 8, 9, 16, 32, 64}) {
          const PackedView w = shape(n, k, density);
          SpmmCudaPlan p;
          const Status planned = plan_spmm_t16(w, m, device, &p);
          ASSERT_TRUE(planned.ok()) << planned.text << ", " << n << " x " << k << ", m " << m;
          EXPECT_LE(p.shared_bytes, device.shared_per_block);
          EXPECT_EQ(p.warps_n * p.warps_k, kBlockWarps);
          EXPECT_GE(int64_t{p.blocks_n} * p.warps_n, t16::row_tiles(n));
          EXPECT_LE(p.splits, t16::col_tiles(k));
          EXPECT_GE(8 * p.token_tiles, m);
          EXPECT_EQ(p.workspace_bytes > 0, p.splits > 1);
          EXPECT_TRUE(p.splits == 1 || p.blocks_n <= kWorkspaceTickets);
        }
      }
    }
  }
}

TEST(PlanT16, KeepsEverySmBusyAndCopiesFewX) {
  for (const auto& [n, k] : {std::pair{4096, 4096}, {14336, 4096}, {4096, 14336}}) {
    for (const int64_t m : {1, 8, 16}) {
      const PackedView w = shape(n, k, 0.5);
      SpmmCudaPlan p;
      ASSERT_TRUE(plan_spmm_t16(w, m, kH100, &p).ok());
      EXPECT_GE(p.blocks_n * p.splits, kH100.sms * 9 / 10) << n << " x " << k << ", m " << m;
      const int64_t x_bytes = int64_t{p.blocks_n} * m * k * 2;
      EXPECT_LT(x_bytes, w.record_bytes) << n << " x " << k << ", m " << m;
    }
  }
}

TEST(PlanT16, RefusesOtherTokenCounts) {
  SpmmCudaPlan p;
  for (const int64_t m : {0, 65}) {
    EXPECT_EQ(plan_spmm_t16(shape(16, 64, 0.5), m, kH100, &p).code, Code::invalid_argument);
  }
}

}  // namespace
}  // namespace tamis::test
