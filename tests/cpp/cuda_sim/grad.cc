// Every row of spmm_grad/kernels_cuda.def, which write a weight out and gather, on the simulator:
// formats, tails of every extent, densities, values at any address, guard pages round every array;
// then bugs put in on purpose.
#include <gtest/gtest.h>

#include <algorithm>

#include "grad_problem.h"
#include "ops/spmm_grad/unpack.cuh"

namespace tamis::test {
namespace {

sim::Launch launch_of(const DenseParams& p, uint64_t seed, const sim::Faults& faults = {}) {
  const auto groups = static_cast<uint32_t>(ceil_div(p.rows, kUnpackWarps));
  return {.grid = {groups * static_cast<uint32_t>(p.parts)},
          .block = {32 * kUnpackWarps},
          .shared_bytes = kUnpackShared,
          .seed = seed,
          .faults = faults};
}

// What is wrong; empty if nothing.
std::string unpacks(const MatrixView& w, uint64_t seed, const sim::Faults& faults = {}) {
  Guarded<uint16_t> dense(static_cast<size_t>(w.rows * w.cols));
  std::vector<uint16_t> wanted(dense.size());
  if (!unpack(w, wanted.data(), w.cols).ok()) return "no reference";
  const DenseParams p = dense_params(w, const_cast<void*>(w.values), dense.data());
  const std::string wrong = sim::launch(launch_of(p, seed, faults), [&] { unpack_mask(p); });
  if (!wrong.empty()) return wrong;
  return std::equal(wanted.begin(), wanted.end(), dense.data()) ? "" : "other values";
}

std::string gathers(const MatrixView& w, uint64_t seed) {
  std::vector<uint16_t> dense(static_cast<size_t>(w.rows * w.cols));
  if (!unpack(w, dense.data(), w.cols).ok()) return "no reference";
  Guarded<uint16_t> values(static_cast<size_t>(w.nnz));
  const DenseParams p = dense_params(w, values.data(), dense.data());
  const std::string wrong = sim::launch(launch_of(p, seed), [&] { gather_mask(p); });
  if (!wrong.empty()) return wrong;
  const auto* kept = static_cast<const uint16_t*>(w.values);
  return std::equal(kept, kept + w.nnz, values.data()) ? "" : "other values";
}

TEST(SpmmGrad, EveryRowUnpacksAndGathers) {
  uint64_t seed = 70;
  for (const SpmmGradCudaRow& row : spmm_grad_cuda_kernels()) {
    for (const Format format : {Format::bitmap, Format::nm}) {
      for (const auto& [n, k, density] :
           std::vector<std::tuple<int64_t, int64_t, double>>{{8, 8, 0.5},
                                                             {40, 72, 0.3},
                                                             {136, 200, 0.5},
                                                             {24, 328, 1.0},
                                                             {16, 2048, 0.9},
                                                             {16, 2120, 0.5},
                                                             {8, 4232, 0.02},
                                                             {8, 6144, 1.0},
                                                             {16, 64, 0.0}}) {
        if (format == Format::nm && density == 0.0) continue;
        const GradCase c{format, row.dtype, 1, n, k, density};
        GradProblem problem(c, ++seed, true);
        const MatrixView w = problem.sddmm_args().w;
        EXPECT_EQ(unpacks(w, seed), "") << row.name << " " << to_string(c);
        EXPECT_EQ(gathers(w, seed), "") << row.name << " " << to_string(c);
      }
    }
  }
}

TEST(SpmmGrad, NoticesMissingWaitsAndCopies) {
  GradProblem problem({Format::bitmap, DType::bf16, 1, 40, 2120, 0.5}, 7, true);
  const MatrixView w = problem.sddmm_args().w;
  for (const sim::Faults& faults :
       {sim::Faults{}, sim::Faults{.wait = 0}, sim::Faults{.copy = 100}}) {
    int wrong = 0;
    for (uint64_t seed = 1; seed <= 6; ++seed) wrong += !unpacks(w, seed, faults).empty();
    EXPECT_EQ(wrong > 0, faults.wait >= 0 || faults.copy >= 0) << faults.wait << faults.copy;
  }
}

TEST(SpmmGrad, RefusesWhatHasNoKernel) {
  MatrixView w{.format = Format::bitmap, .rows = 12, .cols = 8, .dtype = DType::bf16};
  alignas(16) static uint16_t memory[16];
  EXPECT_EQ(check_dense("unpack", w, memory).code, Code::no_kernel);
  w.rows = 8;
  EXPECT_TRUE(check_dense("unpack", w, memory).ok());
  EXPECT_EQ(check_dense("unpack", w, memory + 1).code, Code::no_kernel);
  w.dtype = DType::f32;
  EXPECT_EQ(check_dense("unpack", w, memory).code, Code::unsupported_dtype);
  w.format = Format::csr;
  EXPECT_EQ(check_dense("unpack", w, memory).code, Code::no_kernel);
}

}  // namespace
}  // namespace tamis::test
