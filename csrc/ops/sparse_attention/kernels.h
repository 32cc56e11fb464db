// Declares every kernel of kernels.def.
#pragma once

#include "ops/sparse_attention/sparse_attention.h"

namespace tamis {
#define TAMIS_ATTENTION(storage, q, isa) \
  void sparse_attention_##storage##_##q##_##isa(const AttentionPart&, AttentionState*);
#include "ops/sparse_attention/kernels.def"
#undef TAMIS_ATTENTION
}  // namespace tamis
