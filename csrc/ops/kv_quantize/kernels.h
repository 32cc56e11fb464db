// Declares every kernel of kernels.def.
#pragma once

#include "ops/kv_quantize/kv_quantize.h"

namespace tamis {
#define TAMIS_KV_QUANTIZE(dtype, isa)                                                           \
  void kv_quantize_##dtype##_##isa(const KvQuantizeArgs&, const void* keys, const void* values, \
                                   void* record);
#include "ops/kv_quantize/kernels.def"
#undef TAMIS_KV_QUANTIZE
}  // namespace tamis
