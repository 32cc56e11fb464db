// Declares every kernel of kernels.def.
#pragma once

#include "ops/kv_select/kv_select.h"

namespace tamis {
#define TAMIS_KV_SCORE(kind, dtype, q, isa) \
  void kv_select_##kind##_##dtype##_##q##_##isa(const KvScorePart&);
#define TAMIS_KV_SUMMARY(dtype, isa) void kv_select_summary_##dtype##_##isa(const KvSummaryPart&);
#define TAMIS_KV_REDUCE(isa) extern const KvReduceRow kv_select_reduce_##isa;
#include "ops/kv_select/kernels.def"
#undef TAMIS_KV_SCORE
#undef TAMIS_KV_REDUCE
#undef TAMIS_KV_SUMMARY
}  // namespace tamis
