// Every row of spgemm/kernels_cuda.def on the simulator against the reference and, bit for bit,
// against the processor: rows for a warp, for a block and wider ones; then barriers left out on
// purpose.
#include "ops/spgemm/spgemm.cuh"

#include <gtest/gtest.h>

#include "spgemm_problem.h"

namespace tamis::test {
namespace {

constexpr CudaDevice kSmall{
    .capability = 90, .sms = 2, .shared_per_sm = 233472, .shared_per_block = 232448};

template <bool kFill>
std::string run(const SpgemmParams& p, uint64_t seed, const sim::Faults& faults) {
  const auto rows = static_cast<uint32_t>(ceil_div(p.rows, kSpgemmWarps));
  const auto start = [&](uint32_t blocks, int32_t shared, const std::function<void()>& kernel) {
    return sim::launch({.grid = {blocks},
                        .block = {kSpgemmThreads},
                        .shared_bytes = static_cast<size_t>(shared),
                        .seed = seed,
                        .faults = faults},
                       kernel);
  };
  std::string wrong = sim::launch({.grid = {1}, .block = {32}}, [&] { spgemm_start(p); });
  if (wrong.empty()) wrong = start(rows, 0, [&] { spgemm_bound(p); });
  if (wrong.empty()) wrong = start(rows, kSpgemmWarpShared, [&] { spgemm_warps<kFill>(p); });
  const uint32_t blocks = 2 * kSmall.sms;
  if (wrong.empty()) {
    wrong = start(blocks, kSpgemmBlockShared, [&] { spgemm_blocks<kFill>(p, blocks); });
  }
  if (!wrong.empty() || p.dense_blocks == 0) return wrong;
  return start(static_cast<uint32_t>(p.dense_blocks), kSpgemmDenseShared,
               [&] { spgemm_dense<kFill>(p); });
}

// What is wrong with a product; empty if nothing.
std::string attempt(const SpgemmProblem& problem, uint64_t seed, const sim::Faults& faults = {}) {
  const SpgemmArgs a = problem.args();
  int64_t bytes = 0;
  if (const Status s = spgemm_workspace(a, kSmall, &bytes); !s.ok()) return s.text;
  std::vector<dev::Word4> workspace(static_cast<size_t>(ceil_div(bytes, 16)), {~0u, ~0u, ~0u, ~0u});
  SpgemmParams p = spgemm_params(a, workspace.data(), kSmall);
  Guarded<int64_t> counts(static_cast<size_t>(a.a.rows));
  p.counts = counts.data();
  std::string wrong = run<false>(p, seed, faults);
  if (!wrong.empty()) return wrong;
  std::vector<int64_t> offsets(static_cast<size_t>(a.a.rows + 1)), wanted(offsets.size());
  for (size_t i = 0; i + 1 < offsets.size(); ++i) offsets[i + 1] = offsets[i] + counts[i];
  if (!spgemm_count(a, wanted.data()).ok() || offsets != wanted) return "counts differ";
  Guarded<int32_t> columns(static_cast<size_t>(offsets.back()));
  Guarded<float> values(columns.size());
  p.row_offsets = offsets.data();
  p.col_indices = columns.data();
  p.values = values.data();
  wrong = run<true>(p, seed, faults);
  if (!wrong.empty()) return wrong;
  const std::vector<int32_t> got(columns.data(), columns.data() + columns.size());
  const std::vector<float> sums(values.data(), values.data() + values.size());
  std::vector<int32_t> same(got.size());
  std::vector<float> exact(sums.size());
  if (!spgemm_fill(a, wanted.data(), same.data(), exact.data()).ok()) return "no product";
#if defined(__x86_64__)  // others may join a product and a sum in one rounding
  if (got != same || sums != exact) return "other bits than the processor's";
#endif
  return problem.compare(offsets, got, sums);
}

TEST(Spgemm, EveryRowMatchesTheReference) {
  ASSERT_EQ(spgemm_cuda_kernels().size(), 1u);
  uint64_t seed = 40;
  for (const SpgemmShape shape :
       {SpgemmShape::random, SpgemmShape::banded, SpgemmShape::skewed, SpgemmShape::crossed}) {
    for (const auto& [m, p, n, mean] : std::vector<std::tuple<int64_t, int64_t, int64_t, int64_t>>{
             {1, 1, 1, 1}, {19, 40, 65, 3}, {20, 70, 700, 12}, {17, 120, 5000, 40}}) {
      const SpgemmCase c{shape, m, p, n, mean};
      const SpgemmProblem problem(c, ++seed);
      EXPECT_EQ(attempt(problem, seed), "") << to_string(c);
    }
  }
}

TEST(Spgemm, WideRowsAddUpInGlobalMemory) {
  // a's first row meets 600 rows of 12 values each: more columns than a table takes.
  const SpgemmProblem problem({SpgemmShape::crossed, 5, 600, 20000, 12}, 9);
  const SpgemmArgs a = problem.args();
  EXPECT_GT(dense_blocks(a.b.cols, kSmall), 1);
  EXPECT_EQ(dense_blocks(kBlockColumns, kSmall), 0);
  EXPECT_EQ(attempt(problem, 9), "");
}

// Rows for a block and wider ones, more of both than blocks have: tables and sums are used again.
TEST(Spgemm, BlocksTakeRowAfterRow) {
  for (const auto& [n, mean] : {std::pair<int64_t, int64_t>{3000, 40}, {9000, 400}}) {
    const SpgemmProblem problem({SpgemmShape::half, 11, 40, n, mean}, 31);
    EXPECT_EQ(dense_blocks(problem.args().b.cols, kSmall), n > kBlockColumns ? 4 : 0);
    for (uint64_t seed = 1; seed <= 3; ++seed) EXPECT_EQ(attempt(problem, seed), "") << n;
  }
}

// Products of a row that 32 bits do not count: two rows of b so long as to add up to 2^32.
TEST(Spgemm, BoundsDoNotWrapAround) {
  const int64_t a_offsets[] = {0, 2}, b_offsets[] = {0, int64_t{1} << 31, int64_t{1} << 32};
  const int32_t a_columns[] = {0, 1};
  uint32_t bound = 0, numbers[2] = {};
  int32_t lists[2] = {};
  SpgemmParams p{};
  p.a_offsets = a_offsets;
  p.b_offsets = b_offsets;
  p.a_columns = a_columns;
  p.rows = 1;
  p.columns = 300;
  p.bounds = &bound;
  p.numbers = numbers;
  p.lists = lists;
  ASSERT_EQ(sim::launch({.grid = {1}, .block = {kSpgemmThreads}}, [&] { spgemm_bound(p); }), "");
  EXPECT_EQ(bound, 300u);
  EXPECT_EQ(numbers[0], 1u);
}

TEST(Spgemm, NoticesMissingBarriers) {
  const SpgemmProblem problem({SpgemmShape::crossed, 3, 30, 300, 120}, 4);
  ASSERT_EQ(attempt(problem, 4), "");
  for (const int barrier : {0, 1, 5, 6}) {  // after the clearing, between rows of b
    int noticed = 0;
    for (uint64_t seed = 1; seed <= 6; ++seed) {
      noticed += !attempt(problem, seed, {.barrier = barrier}).empty();
    }
    EXPECT_GT(noticed, 0) << barrier;
  }
}

}  // namespace
}  // namespace tamis::test
