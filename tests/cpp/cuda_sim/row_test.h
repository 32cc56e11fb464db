// What tests of rows of kernels_cuda.def have in common: problems in the row's form and dtype, runs
// with its plan, bugs put in on purpose.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "cuda_sim/problem.h"

namespace tamis::test {

class RowTest : public testing::TestWithParam<SimRow> {
 protected:
  Case case_of(Problem p) const {
    p.dtype = GetParam().dtype;
    p.format = GetParam().format;
    return Case(p);
  }
  // A run by the case's own seed.
  static void expect_right(Case& c, const SpmmCudaPlan& plan, const std::string& what) {
    EXPECT_EQ(run(GetParam(), c, plan, c.problem().seed), "") << label(c.problem()) << ", " << what;
  }
  // In how many of 8 runs a fault shows.
  static int noticed(Case& c, const SpmmCudaPlan& plan, const sim::Faults& faults) {
    return test::noticed(GetParam(), c, plan, faults);
  }
};

inline std::string name_of(const testing::TestParamInfo<SimRow>& info) {
  return info.param.name;
}

}  // namespace tamis::test
