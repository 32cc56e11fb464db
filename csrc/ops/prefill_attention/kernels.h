// Declares every kernel of kernels.def.
#pragma once

#include "ops/prefill_attention/prefill_attention.h"

namespace tamis {
#define TAMIS_PREFILL(isa) void prefill_attention_##isa(const PrefillPart&);
#define TAMIS_PREFILL_TILES(isa) void prefill_attention_bf16_##isa(const PrefillPart&);
#include "ops/prefill_attention/kernels.def"
#undef TAMIS_PREFILL_TILES
#undef TAMIS_PREFILL
}  // namespace tamis
