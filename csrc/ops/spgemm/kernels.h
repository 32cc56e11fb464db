// Declares every kernel of kernels.def.
#pragma once

#include "ops/spgemm/spgemm.h"

namespace tamis {
#define TAMIS_SPGEMM(isa)                                                              \
  int64_t spgemm_memory_##isa(const SpgemmArgs&);                                      \
  void spgemm_count_##isa(const SpgemmArgs&, int64_t begin, int64_t end, void* memory, \
                          int64_t* counts);                                            \
  void spgemm_fill_##isa(const SpgemmArgs&, int64_t begin, int64_t end, void* memory,  \
                         const int64_t* row_offsets, int32_t* col_indices, float* values);
#include "ops/spgemm/kernels.def"
#undef TAMIS_SPGEMM
}  // namespace tamis
