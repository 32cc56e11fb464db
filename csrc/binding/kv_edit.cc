// Tokens of a KV cache that stay or merge, over raw addresses.
#include "binding/kv_edit.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <utility>

#include "binding/address.h"
#include "ops/kv_edit/kv_edit.h"

namespace tamis::binding {
namespace {

// Address, width and address of the counts; address and two strides.
using Tokens = std::tuple<uintptr_t, int64_t, uintptr_t>;
using Array = std::tuple<uintptr_t, int64_t, int64_t>;

KvTokens tokens(const Tokens& x) {
  const auto [index, stride, count] = x;
  return {address<const int32_t>(index), stride, address<const int32_t>(count)};
}

void gather(std::tuple<int64_t, int64_t, int64_t> shape, const Array& x, const Tokens& index,
            const Array& out) {
  KvGatherArgs args{.index = tokens(index)};
  std::tie(args.heads, args.tokens, args.row_bytes) = shape;
  uintptr_t from = 0, to = 0;
  std::tie(from, args.head_stride_bytes, args.token_stride_bytes) = x;
  std::tie(to, args.out_head_stride_bytes, args.out_token_stride_bytes) = out;
  args.x = address<const void>(from);
  args.out = address<void>(to);
  run(&kv_gather, args);
}

void merge(int dtype, std::tuple<int64_t, int64_t, int64_t> shape, const Array& keys,
           const Array& values, std::pair<uintptr_t, uintptr_t> weight_and_mass, const Tokens& kept,
           const Tokens& dropped, bool by_values, float tau,
           std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t> out) {
  KvMergeArgs args{.dtype = float_dtype("kv_merge", dtype),
                   .weight = address<const float>(weight_and_mass.first),
                   .mass = address<const float>(weight_and_mass.second),
                   .kept = tokens(kept),
                   .dropped = tokens(dropped),
                   .similarity = by_values ? KvSimilarity::keys_values : KvSimilarity::keys,
                   .tau = tau};
  std::tie(args.heads, args.tokens, args.head_dim) = shape;
  uintptr_t k = 0, v = 0;
  std::tie(k, args.key_head_stride, args.key_token_stride) = keys;
  std::tie(v, args.value_head_stride, args.value_token_stride) = values;
  args.keys = address<const void>(k);
  args.values = address<const void>(v);
  const auto [out_keys, out_values, out_mass, joined] = out;
  args.out_keys = address<void>(out_keys);
  args.out_values = address<void>(out_values);
  args.out_mass = address<float>(out_mass);
  args.joined = address<int32_t>(joined);
  run(&kv_merge, args);
}

}  // namespace

void bind_kv_edit(py::module_& m) {
  using namespace py::literals;
  m.def("kv_gather", &gather, "shape"_a, "x"_a, "index"_a, "out"_a);
  m.def("kv_merge", &merge, "dtype"_a, "shape"_a, "keys"_a, "values"_a, "weight_and_mass"_a,
        "kept"_a, "dropped"_a, "by_values"_a, "tau"_a, "out"_a);
}

}  // namespace tamis::binding
