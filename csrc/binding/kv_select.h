// kv_estimate, kv_mass, kv_select and kv_label records, and their arguments as Python gives them:
// sizes and raw addresses.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "binding/address.h"
#include "ops/kv_select/kv_select.h"

namespace tamis::binding {

using SelectShape = std::tuple<int64_t, int64_t, int64_t, int64_t>;         // b, g, rows, d
using MassShape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;  // b, g, heads, n, d
using KeysShape = std::tuple<int64_t, int64_t, int64_t>;                    // b, g, d

KvEstimateArgs estimate_args(int dtype, const SelectShape& shape, uintptr_t q, float scale,
                             const KvUnits& units, bool log_weight, uintptr_t begin, uintptr_t out);
KvMassArgs mass_args(int dtype, const MassShape& shape, uintptr_t q, float scale,
                     const KvUnits& keys, uintptr_t positions, uintptr_t begin, uintptr_t out);
KvSelectArgs select_args(int64_t heads, int64_t units, uintptr_t scores, int64_t k,
                         uintptr_t budget, double top_p, int64_t sink, int64_t recent, int64_t page,
                         uintptr_t begin, uintptr_t index, int64_t index_stride, uintptr_t count);
KvAppendLabelsArgs append_labels_args(int32_t channels, int dtype, const KeysShape& shape,
                                      uintptr_t keys, const Strides3& key_strides,
                                      uintptr_t channel_ids, int64_t first, int64_t count,
                                      uintptr_t records, const Strides& strides_bytes);

void bind_kv_select(pybind11::module_& m);

}  // namespace tamis::binding
