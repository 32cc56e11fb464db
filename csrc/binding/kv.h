// kv_page records, kv_quantize and sparse_attention, and their arguments as Python gives them:
// sizes and raw addresses.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <span>
#include <tuple>

#include "binding/address.h"
#include "ops/kv_quantize/kv_quantize.h"
#include "ops/sparse_attention/sparse_attention.h"

namespace tamis::binding {

using AttentionShape = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // b, g, rows, d

KvQuantizeArgs quantize_args(const KvPageLayout& layout, int dtype, int64_t heads, int64_t pages,
                             uintptr_t keys, const Strides& key_strides, uintptr_t values,
                             const Strides& value_strides, uintptr_t out, int64_t out_stride_bytes);
// `segments` stays the caller's.
SparseAttentionArgs attention_args(int dtype, const AttentionShape& shape, uintptr_t q,
                                   uintptr_t out, uintptr_t lse, float scale, float softcap,
                                   std::span<const KvSegment> segments);

void bind_kv(pybind11::module_& m);

}  // namespace tamis::binding
