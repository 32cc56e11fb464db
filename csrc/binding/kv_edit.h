// kv_edit, and its arguments as Python gives them: sizes and raw addresses.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>
#include <utility>

#include "binding/address.h"
#include "ops/kv_edit/kv_edit.h"

namespace tamis::binding {

using EditShape = std::tuple<int64_t, int64_t, int64_t>;       // heads, tokens, bytes of a row or d
using EditArray = std::tuple<uintptr_t, int64_t, int64_t>;     // and two strides
using EditTokens = std::tuple<uintptr_t, int64_t, uintptr_t>;  // index, width, count
using EditOut = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t>;  // as KvMergeArgs has them

KvGatherArgs gather_args(const EditShape& shape, const EditArray& x, const EditTokens& index,
                         const EditArray& out);
KvMergeArgs merge_args(int dtype, const EditShape& shape, const EditArray& keys,
                       const EditArray& values, std::pair<uintptr_t, uintptr_t> weight_and_mass,
                       const EditTokens& kept, const EditTokens& dropped, bool by_values, float tau,
                       const EditOut& out);

void bind_kv_edit(pybind11::module_& m);

}  // namespace tamis::binding
