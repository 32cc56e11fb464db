// Declares every kernel of kernels.def.
#pragma once

#include "ops/sparse_mlp/sparse_mlp.h"

namespace tamis {
#define TAMIS_SPARSE_MLP(dtype, isa) void sparse_mlp_##dtype##_##isa(const MlpPart&);
#include "ops/sparse_mlp/kernels.def"
#undef TAMIS_SPARSE_MLP
}  // namespace tamis
