// spgemm against the reference: random, banded, skewed and crossed matrices with empty rows, sums
// that are zero, guard pages after each array.
#include <gtest/gtest.h>

#include "base/parallel.h"
#include "spgemm_problem.h"

namespace tamis::test {
namespace {

struct Product {
  std::vector<int64_t> offsets;
  std::vector<int32_t> columns;
  std::vector<float> values;
  bool operator==(const Product&) const = default;
};

Product multiply(const SpgemmArgs& a) {
  Product c;
  c.offsets.resize(static_cast<size_t>(a.a.rows + 1));
  EXPECT_TRUE(spgemm_count(a, c.offsets.data()).ok());
  c.columns.resize(static_cast<size_t>(c.offsets.back()));
  c.values.resize(c.columns.size());
  EXPECT_TRUE(spgemm_fill(a, c.offsets.data(), c.columns.data(), c.values.data()).ok());
  return c;
}

TEST(Spgemm, MatchesTheReference) {
  uint64_t seed = 0;
  for (const SpgemmShape shape :
       {SpgemmShape::random, SpgemmShape::banded, SpgemmShape::skewed, SpgemmShape::crossed}) {
    for (const auto& [m, p, n, mean] : std::vector<std::tuple<int64_t, int64_t, int64_t, int64_t>>{
             {1, 1, 1, 1}, {3, 40, 65, 2}, {130, 70, 4100, 5}, {257, 200, 9000, 9}}) {
      const SpgemmCase c{shape, m, p, n, mean};
      const SpgemmProblem problem(c, ++seed);
      const Product got = multiply(problem.args());
      EXPECT_EQ(problem.compare(got.offsets, got.columns, got.values), "") << to_string(c);
    }
  }
}

TEST(Spgemm, SameBitsForAnyNumberOfThreads) {
  const SpgemmProblem problem({SpgemmShape::skewed, 900, 700, 3000, 12}, 3);
  set_num_threads(1);
  const Product one = multiply(problem.args());
  set_num_threads(4);
  EXPECT_EQ(one, multiply(problem.args()));
  set_num_threads(0);
}

TEST(Spgemm, RefusesWhatHasNoKernel) {
  const SpgemmProblem problem({SpgemmShape::random, 4, 5, 6, 2}, 1);
  SpgemmArgs a = problem.args();
  std::vector<int64_t> offsets(5);
  a.b.rows = 6;
  EXPECT_EQ(spgemm_count(a, offsets.data()).code, Code::invalid_argument);
  a = problem.args();
  a.a.dtype = DType::bf16;
  EXPECT_EQ(spgemm_count(a, offsets.data()).code, Code::unsupported_dtype);
  a = problem.args();
  a.b.format = Format::bitmap;
  EXPECT_EQ(spgemm_count(a, offsets.data()).code, Code::no_kernel);
  EXPECT_EQ(spgemm_count(problem.args(), nullptr).code, Code::invalid_argument);
}

}  // namespace
}  // namespace tamis::test
