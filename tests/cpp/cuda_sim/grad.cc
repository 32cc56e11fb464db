// Every row of spmm_grad/kernels_cuda.def on the simulator against the double references: formats,
// dtypes, tails of every extent, densities, guard pages round every array; then bugs put in on
// purpose.
#include "ops/spmm_grad/grad.cuh"

#include <gtest/gtest.h>

#include <limits>

#include "grad_problem.h"
#include "ops/spmm_grad/unpack.cuh"

namespace tamis::test {
namespace {

constexpr CudaDevice kH100{
    .capability = 90, .sms = 132, .shared_per_sm = 233472, .shared_per_block = 232448};

uint32_t tiles(int64_t extent, int64_t of) {
  return static_cast<uint32_t>(ceil_div(extent, of));
}

std::string find_places(const GradMask& w, uint64_t seed) {
  const sim::Launch launch{
      .grid = {tiles(w.rows, kGradThreads / 32)}, .block = {kGradThreads}, .seed = seed};
  return sim::launch(launch, [&] { grad_places(w); });
}

// A workspace of NaN beyond its tickets.
std::vector<uint64_t> workspace_of(int64_t bytes) {
  return std::vector<uint64_t>(static_cast<size_t>(ceil_div(bytes, 8)), ~uint64_t{0});
}

template <DType kType>
std::string run(const SpmmTArgs& a, const CudaDevice& device, uint64_t seed,
                const sim::Faults& faults = {}) {
  int64_t bytes = 0;
  if (const Status s = spmm_t_workspace(a, device, &bytes); !s.ok()) return s.text;
  std::vector<uint64_t> workspace = workspace_of(bytes);
  const SpmmTParams p = spmm_t_params(a, workspace.data(), device);
  std::string wrong = find_places(p.w, seed);
  if (!wrong.empty()) return wrong;
  wrong = sim::launch(
      {.grid = {tiles(p.k, kGradTile), tiles(p.m, kGradTile) * static_cast<uint32_t>(p.splits)},
       .block = {kGradThreads},
       .shared_bytes = kSpmmTShared,
       .seed = seed,
       .faults = faults},
      [&] { spmm_t<kType>(p); });
  if (!wrong.empty() || p.splits == 1) return wrong;
  return sim::launch({.grid = {tiles(p.k, 2 * kGradThreads), static_cast<uint32_t>(p.m)},
                      .block = {kGradThreads},
                      .seed = seed},
                     [&] { spmm_t_add<kType>(p); });
}

template <DType kType>
std::string run(const SddmmArgs& a, const CudaDevice& device, uint64_t seed,
                const sim::Faults& faults = {}) {
  int64_t bytes = 0;
  if (const Status s = sddmm_workspace(a, device, &bytes); !s.ok()) return s.text;
  std::vector<uint64_t> workspace = workspace_of(bytes);
  const SddmmParams p = sddmm_params(a, workspace.data());
  const std::string wrong = find_places(p.w, seed);
  if (!wrong.empty()) return wrong;
  return sim::launch({.grid = {tiles(p.k, kGradTile), tiles(p.w.rows, kGradTile)},
                      .block = {kGradThreads},
                      .shared_bytes = kSddmmShared,
                      .seed = seed,
                      .faults = faults},
                     [&] { sddmm<kType>(p); });
}

// What is wrong with a gradient; empty if nothing.
template <class Args>
std::string attempt(GradProblem& problem, const Args& args, const CudaDevice& device, uint64_t seed,
                    const sim::Faults& faults = {}) {
  const std::string wrong = args.dtype == DType::bf16 ? run<DType::bf16>(args, device, seed, faults)
                                                      : run<DType::f16>(args, device, seed, faults);
  return wrong.empty() ? problem.compare(args) : wrong;
}

TEST(SpmmGrad, EveryRowMatchesTheReferences) {
  uint64_t seed = 900;
  for (const SpmmGradCudaRow& row : spmm_grad_cuda_kernels()) {
    for (const Format format : {Format::bitmap, Format::nm}) {
      for (const auto& [m, n, k, density, sms] :
           std::vector<std::tuple<int64_t, int64_t, int64_t, double, int32_t>>{
               {1, 8, 8, 0.5, 1},
               {5, 40, 72, 0.5, 132},
               {128, 136, 192, 0.3, 1},
               {33, 1032, 264, 0.1, 132},  // shared out over rows
               {3, 16, 2120, 0.2, 132},    // more words of a row than a warp has lanes
               {200, 264, 136, 0.0, 1},
               {70, 128, 328, 1.0, 132}}) {
        if (format == Format::nm && density == 0.0) continue;
        const GradCase c{format, row.dtype, m, n, k, density};
        CudaDevice device = kH100;
        device.sms = sms;
        GradProblem problem(c, ++seed, true);
        EXPECT_EQ(attempt(problem, problem.spmm_t_args(), device, seed), "")
            << row.name << " spmm_t " << to_string(c);
        EXPECT_EQ(attempt(problem, problem.sddmm_args(), device, seed), "")
            << row.name << " sddmm " << to_string(c);
      }
    }
  }
}

TEST(SpmmGrad, UnpacksAndGathers) {
  uint64_t seed = 70;
  for (const Format format : {Format::bitmap, Format::nm}) {
    for (const auto& [n, k, density] :
         std::vector<std::tuple<int64_t, int64_t, double>>{{8, 8, 0.5},
                                                           {40, 72, 0.3},
                                                           {136, 200, 0.5},
                                                           {24, 328, 1.0},
                                                           {16, 2048, 0.9},
                                                           {16, 2120, 0.5},
                                                           {8, 4232, 0.02},
                                                           {8, 6144, 1.0}}) {
      GradProblem problem({format, DType::bf16, 1, n, k, density}, ++seed, true);
      const MatrixView w = problem.sddmm_args().w;
      Guarded<uint16_t> dense(static_cast<size_t>(n * k)), values(static_cast<size_t>(w.nnz));
      std::vector<uint16_t> wanted(dense.size());
      ASSERT_TRUE(unpack(w, wanted.data(), k).ok());
      const auto* kept = static_cast<const uint16_t*>(w.values);
      const DenseParams p = dense_params(w, const_cast<uint16_t*>(kept), dense.data());
      const sim::Launch launch{.grid = {tiles(n, kUnpackWarps) * static_cast<uint32_t>(p.parts)},
                               .block = {32 * kUnpackWarps},
                               .shared_bytes = kUnpackShared,
                               .seed = seed};
      ASSERT_EQ(sim::launch(launch, [&] { unpack_mask(p); }), "");
      EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), dense.data()));
      const DenseParams back = dense_params(w, values.data(), dense.data());
      ASSERT_EQ(sim::launch(launch, [&] { gather_mask(back); }), "");
      EXPECT_TRUE(std::equal(kept, kept + w.nnz, values.data()));
    }
  }
}

TEST(SpmmGrad, SharesRowsOutWhereTokensAreFew) {
  EXPECT_EQ(spmm_t_splits(33, 1032, 264, kH100), 4);
  EXPECT_EQ(spmm_t_splits(4096, 4096, 4096, kH100), 1);
  EXPECT_EQ(spmm_t_splits(1, 4096, 4096, kH100), 8);
}

TEST(SpmmGrad, NoticesMissingBarriersWaitsAndCopies) {
  GradProblem problem({Format::bitmap, DType::bf16, 200, 264, 72, 0.5}, 7, true);
  CudaDevice device = kH100;
  device.sms = 1;
  for (const sim::Faults& faults : {sim::Faults{}, sim::Faults{.barrier = 2},
                                    sim::Faults{.wait = 2}, sim::Faults{.copy = 700}}) {
    int turned = 0, sampled = 0;
    for (uint64_t seed = 1; seed <= 6; ++seed) {
      turned += !attempt(problem, problem.spmm_t_args(), device, seed, faults).empty();
      sampled += !attempt(problem, problem.sddmm_args(), device, seed, faults).empty();
    }
    const bool none = faults.barrier < 0 && faults.wait < 0 && faults.copy < 0;
    EXPECT_EQ(turned > 0, !none) << faults.barrier << faults.wait << faults.copy;
    EXPECT_EQ(sampled > 0, !none) << faults.barrier << faults.wait << faults.copy;
  }
}

TEST(SpmmGrad, RefusesWhatHasNoKernel) {
  int64_t bytes = 0;
  SpmmTArgs a{.w = {.format = Format::bitmap, .rows = 12, .cols = 8, .dtype = DType::bf16},
              .dtype = DType::bf16,
              .m = 1};
  alignas(16) static uint16_t memory[16];
  a.dx = memory;
  EXPECT_EQ(spmm_t_workspace(a, kH100, &bytes).code, Code::no_kernel);
  a.w.rows = 8;
  EXPECT_TRUE(spmm_t_workspace(a, kH100, &bytes).ok());
  a.dx = memory + 1;
  EXPECT_EQ(spmm_t_workspace(a, kH100, &bytes).code, Code::no_kernel);
  a.dx = memory;
  a.dtype = DType::f16;
  EXPECT_EQ(spmm_t_workspace(a, kH100, &bytes).code, Code::unsupported_dtype);
  a.w.format = Format::csr;
  EXPECT_EQ(spmm_t_workspace(a, kH100, &bytes).code, Code::no_kernel);
}

}  // namespace
}  // namespace tamis::test
