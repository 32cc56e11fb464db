// Declares every kernel of kernels.def.
#pragma once

#include "ops/spmm/spmm.h"

namespace tamis {
#define TAMIS_SPMM(format, w, x, isa, tile_m, tile_n) \
  void spmm_##format##_##w##_##x##_##isa(const SpmmArgs&, int64_t row_begin, int64_t row_end);
#define TAMIS_SPMM_FORM(form, format, w, x, isa, from_m, tile_m, tile_n)              \
  extern const SpmmXForm spmm_##form##_##x##_##isa;                                   \
  void spmm_##format##_##w##_##x##_##isa##_##form(const SpmmArgs&, int64_t row_begin, \
                                                  int64_t row_end);
#include "ops/spmm/kernels.def"
#undef TAMIS_SPMM
#undef TAMIS_SPMM_FORM
}  // namespace tamis
