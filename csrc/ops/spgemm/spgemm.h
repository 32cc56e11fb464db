// spgemm: c[i,j] = sum_p a[i,p] * b[p,j] of two csr matrices, as csr: row by row (Gustavson), with
// the columns of a row in order. A place is stored if some product falls on it, also where the sum
// is zero.
#pragma once

#include <cstdint>
#include <span>

#include "base/isa.h"
#include "base/status.h"
#include "format/matrix.h"

namespace tamis {

// a [m, p], b [p, n]: csr of f32, columns ascending. Products of a row are added in the order of
// a's columns: the same bits with any number of threads, and on CUDA those of x86-64 (a compiler
// may join a product and a sum in one rounding elsewhere).
struct SpgemmArgs {
  MatrixView a, b;
};

// Rows [begin, end): how many values each will store, into counts[begin..end).
using SpgemmCount = void (*)(const SpgemmArgs&, int64_t begin, int64_t end, void* memory,
                             int64_t* counts);
// The same rows' columns and values, from row_offsets[row] on.
using SpgemmFill = void (*)(const SpgemmArgs&, int64_t begin, int64_t end, void* memory,
                            const int64_t* row_offsets, int32_t* col_indices, float* values);

// One line of kernels.def.
struct SpgemmRow {
  const char* name;  // spgemm_csr_f32_<isa>
  IsaBits isa;
  int64_t (*memory)(const SpgemmArgs&);  // bytes of a thread, zero before and after each call
  SpgemmCount count;
  SpgemmFill fill;
};

std::span<const SpgemmRow> spgemm_kernels();

// row_offsets [m + 1] of the product; row_offsets[m] values have to be made room for.
Status spgemm_count(const SpgemmArgs& args, int64_t* row_offsets);
// col_indices, values [row_offsets[m]], with row_offsets as spgemm_count left them.
Status spgemm_fill(const SpgemmArgs& args, const int64_t* row_offsets, int32_t* col_indices,
                   float* values);

// In double, dense: c [m, n], and places [m, n], 1 where a product falls.
Status spgemm_reference(const SpgemmArgs& args, double* c, uint8_t* places);

// What is wrong with the arguments, as every backend asks it.
Status check_spgemm(const SpgemmArgs& args);

}  // namespace tamis
