// Every row of spmm_grad/kernels.def against the references: formats, dtypes, tokens round a block
// of them, densities, guard pages after each array, NaN between the rows of dy and x.
#include <gtest/gtest.h>

#include <cstdio>

#include "base/parallel.h"
#include "fewer.h"
#include "grad_problem.h"

namespace tamis::test {
namespace {

std::vector<GradCase> cases() {
  std::vector<GradCase> all;
  for (const Format format : {Format::bitmap, Format::nm, Format::csr}) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      for (const auto& [m, n, k] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
               {1, 1, 4}, {3, 17, 64}, {64, 5, 68}, {65, 33, 130}, {150, 40, 200}}) {
        for (const double density : {0.0, 0.1, 0.5, 1.0}) {
          if (format == Format::nm && (k % 4 != 0 || density != 0.5)) continue;
          all.push_back({format, dtype, m, n, k, density});
        }
      }
    }
  }
  return all;
}

TEST(SpmmGrad, EveryKernelMatchesTheReferences) {
  uint64_t number = 0;
  int ran = 0;
  for (const SpmmGradRow& row : spmm_grad_kernels()) {
    if ((row.isa & host_isa()) != row.isa) {
      std::printf("SKIP %s\n", row.name);
      continue;
    }
    for (const GradCase& c : cases()) {
      if (!keeps_case(number++)) continue;
      GradProblem problem(c, number, false);
      const SpmmTArgs turned = problem.spmm_t_args();
      ASSERT_TRUE(spmm_t_with(row, turned).ok());
      ASSERT_EQ(problem.compare(turned), "") << row.name << " " << to_string(c);
      const SddmmArgs sampled = problem.sddmm_args();
      ASSERT_TRUE(sddmm_with(row, sampled).ok());
      ASSERT_EQ(problem.compare(sampled), "") << row.name << " " << to_string(c);
      ++ran;
    }
  }
  EXPECT_GT(ran, 0);
}

TEST(SpmmGrad, SameBitsForAnyNumberOfThreads) {
  GradProblem problem({Format::bitmap, DType::f32, 300, 200, 264, 0.4}, 5, false);
  std::vector<uint8_t> dx[2], dw[2];
  for (int i = 0; i < 2; ++i) {
    set_num_threads(1 + 2 * i);
    const SpmmTArgs turned = problem.spmm_t_args();
    ASSERT_TRUE(spmm_t(turned).ok());
    const auto* x = static_cast<const uint8_t*>(turned.dx);
    dx[i].assign(x, x + 4 * (299 * turned.dx_stride + 264));
    const SddmmArgs sampled = problem.sddmm_args();
    ASSERT_TRUE(sddmm(sampled).ok());
    const auto* w = static_cast<const uint8_t*>(sampled.dw);
    dw[i].assign(w, w + 4 * sampled.w.nnz);
  }
  set_num_threads(0);
  EXPECT_EQ(dx[0], dx[1]);
  EXPECT_EQ(dw[0], dw[1]);
}

TEST(SpmmGrad, RefusesWhatHasNoKernel) {
  SpmmTArgs turned{.w = {.format = Format::block, .rows = 8, .cols = 8}};
  EXPECT_EQ(spmm_t(turned).code, Code::no_kernel);
  turned.w.format = Format::csr;
  turned.w.dtype = DType::i8;
  EXPECT_EQ(spmm_t(turned).code, Code::unsupported_dtype);
  SddmmArgs sampled{.w = {.format = Format::bitmap, .rows = 8, .cols = 8, .nnz = 3}, .m = 2};
  EXPECT_EQ(sddmm(sampled).code, Code::invalid_argument);  // strides
  sampled.dy_stride = sampled.x_stride = 8;
  EXPECT_EQ(sddmm(sampled).code, Code::invalid_argument);  // null
}

}  // namespace
}  // namespace tamis::test
