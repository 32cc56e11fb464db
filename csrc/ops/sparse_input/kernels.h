// Declares every kernel of kernels.def.
#pragma once

#include "ops/sparse_input/sparse_input.h"

namespace tamis {
#define TAMIS_SPARSE_INPUT(dtype, isa) void sparse_input_##dtype##_##isa(const RowSum&);
#include "ops/sparse_input/kernels.def"
#undef TAMIS_SPARSE_INPUT
}  // namespace tamis
