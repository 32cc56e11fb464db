// Pools over keys and values that lie far away, over raw addresses.
#include "binding/kv_fetch.h"

#include <pybind11/stl.h>

namespace tamis::binding {

KvFetchArgs fetch_args(const FetchShape& shape, const FetchLists& lists, const FetchMaps& maps,
                       const FetchFound& found, const FetchRows& rows) {
  KvFetchArgs a;
  std::tie(a.batch, a.kv_heads, a.units, a.slots, a.unit) = shape;
  const auto [index, width, count, begin] = lists;
  a.index = address<const int32_t>(index);
  a.index_stride = width;
  a.count = address<const int32_t>(count);
  a.begin = address<const int32_t>(begin);
  const auto [slot_of, unit_in, stamp, clock, reads] = maps;
  a.slot_of = address<int32_t>(slot_of);
  a.unit_in = address<int32_t>(unit_in);
  a.stamp = address<int32_t>(stamp);
  a.clock = address<int32_t>(clock);
  a.reads = address<int64_t>(reads);
  const auto [near, near_count, todo, lacking] = found;
  a.near = address<int32_t>(near);
  a.near_count = address<int32_t>(near_count);
  a.todo = address<int32_t>(todo);
  a.lacking = address<int32_t>(lacking);
  const auto [row_bytes, far_keys, key_strides, far_values, value_strides, keys, values] = rows;
  a.row_bytes = row_bytes;
  a.far_keys = address<const void>(far_keys);
  a.far_values = address<const void>(far_values);
  std::tie(a.key_batch_stride, a.key_head_stride, a.key_token_stride) = key_strides;
  std::tie(a.value_batch_stride, a.value_head_stride, a.value_token_stride) = value_strides;
  a.near_keys = address<void>(keys);
  a.near_values = address<void>(values);
  return a;
}

void bind_kv_fetch(py::module_& m) {
  using namespace py::literals;
  m.def(
      "kv_fetch",
      [](const FetchShape& shape, const FetchLists& lists, const FetchMaps& maps,
         const FetchFound& found,
         const FetchRows& rows) { run(&kv_fetch, fetch_args(shape, lists, maps, found, rows)); },
      "shape"_a, "lists"_a, "maps"_a, "found"_a, "rows"_a);
}

}  // namespace tamis::binding
