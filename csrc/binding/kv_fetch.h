// kv_fetch, and its arguments as Python gives them: sizes and raw addresses.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "binding/address.h"
#include "ops/kv_fetch/kv_fetch.h"

namespace tamis::binding {

using FetchShape =
    std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;  // b, g, units, slots, unit
using FetchLists =
    std::tuple<uintptr_t, int64_t, uintptr_t, uintptr_t>;  // index, width, count, begin
// slot_of, unit_in, stamp, clock, reads
using FetchMaps = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>;
using FetchFound =
    std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t>;  // near, count, todo, lacking
// Bytes of a row; keys and values far away with strides in bytes, keys null for no copies; the
// pool's.
using FetchRows =
    std::tuple<int64_t, uintptr_t, Strides3, uintptr_t, Strides3, uintptr_t, uintptr_t>;

KvFetchArgs fetch_args(const FetchShape& shape, const FetchLists& lists, const FetchMaps& maps,
                       const FetchFound& found, const FetchRows& rows);

void bind_kv_fetch(pybind11::module_& m);

}  // namespace tamis::binding
