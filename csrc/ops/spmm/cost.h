// What a product is expected to take: the numbers behind every choice and every report.
//
//   compute = words * (word * passes + word_token * m) + nnz * (value * passes + value_token * m)
//           + n * (row * passes + row_token * m) + x * k * m           passes = ceil(m / tile_m)
//   memory  = (stored bytes + bytes of x and y) / weight rate of the threads in use + n * 5 ns
//   time    = (compute^3 + memory^3)^(1/3), compute shared by the threads, plus forks and a call
//
// words = n * ceil(k / 64). The constants of each kernel stand in costs.def, and those of
// Emerald Rapids (has_intel_costs) in costs_intel.def, in ns on the reference machine, fitted by
// bench/cost.py to times in cache; `scale` carries them to another machine. The cubes say that
// computing and reading overlap, though less well where they take equally long.
#pragma once

#include <cstdint>
#include <span>

#include "base/isa.h"
#include "base/machine.h"
#include "ops/spmm/spmm.h"

namespace tamis {

// ns on the reference machine; all zero: not fitted, so nothing is known.
struct SpmmCost {
  double word, word_token, value, value_token, row, row_token, x;
};

// A kernel's constants on the reference machine of this instruction set; null if it has none.
const SpmmCost* spmm_cost(const SpmmRow& row, IsaBits isa);

// What kernels are compared by: the same, and estimates where nothing was measured
// (costs_neon.def).
const SpmmCost* spmm_choice_cost(const SpmmRow& row, IsaBits isa);

// Bytes of all arrays of such a matrix.
double stored_bytes(const SpmmDesc& desc);

// ns that the kernel computes on one thread of the reference machine. Needs: spmm_cost(row, isa).
double compute_ns(const SpmmDesc& desc, const SpmmRow& row, const SpmmCost& cost);

// ns of a whole call whose weights come from memory, on `threads` threads; negative if the kernel
// has no constants. `scale`: this machine's ns for one of the reference's, for this kernel.
double predict_spmm(const SpmmDesc& desc, const SpmmRow& row, const Machine& machine, double scale,
                    int threads);

// Threads that spmm gives such a product: fewer than allowed where there is little to do.
int useful_threads(const SpmmDesc& desc, const SpmmRow& row, int threads);

// Tokens above which unpacking w to dense and calling a dense product is expected to be faster than
// the chosen kernel; INT64_MAX if never, 0 if there is no kernel. `scale`: of every kernel in the
// order of spmm_kernels(); empty: all 1.
int64_t spmm_dense_above(const SpmmDesc& desc, IsaBits isa, const Machine& machine,
                         std::span<const double> scale, int threads);

}  // namespace tamis
