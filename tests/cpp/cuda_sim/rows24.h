// What the simulator's tests of p24 use: their cases, their faults, and weights
// that are written out.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "cuda_sim/problem.h"

namespace tamis::test {

// How a form is written out: the blocks of n rows of a panel, and what each runs.
struct Expansion {
  ExpandP24Params (*params)(const T16View& w, void* out, int64_t stride);
  int64_t (*blocks)(int64_t n);
  void (*run)(const ExpandP24Params& p, bool triples);
};

class Row24Test : public testing::TestWithParam<SimRow> {
 protected:
  Case case_of(Problem p) const {
    p.dtype = GetParam().dtype;
    p.format = GetParam().format;
    return Case(p);
  }

  // In how many of 8 runs a fault shows.
  int faults_seen(Case& c, const SpmmT16Plan& plan, const sim::Faults& faults) const {
    return noticed(GetParam(), c, plan, faults);
  }

  // Of a weight [n, k] in panels, its rows apart by k and some padding.
  void expect_written_out(const Expansion& how, const std::array<int64_t, 4>& shape,
                          double sparsity, uint64_t seed) const {
    const auto& [n, k, panels, padding] = shape;
    Case c = case_of({.n = n,
                      .k = k,
                      .m = 1,
                      .sparsity = sparsity,
                      .parts = static_cast<int32_t>(panels),
                      .seed = seed});
    const int64_t stride = k + padding;
    Guarded<uint16_t> out(static_cast<size_t>((n - 1) * stride + k));
    const ExpandP24Params p = how.params(c.t16(), out.data(), stride);
    const sim::Launch launch{.grid = {static_cast<uint32_t>(how.blocks(n) * panels)},
                             .block = {32 * kP24ExpandWarps},
                             .shared_bytes = static_cast<size_t>(p24_expand_bytes(p.panel_cols)),
                             .seed = seed};
    std::fill(out.span().begin(), out.span().end(), kNotWritten);
    const bool triples = c.t16().max_record_bytes == p24::kTripleBytes;
    ASSERT_EQ(sim::launch(launch, [&] { how.run(p, triples); }), "");
    expect_dense(c, out.span(), stride);
  }
};

}  // namespace tamis::test
