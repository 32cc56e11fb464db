// Tokens of a KV cache that stay or merge, over raw addresses.
#include "binding/kv_edit.h"

#include <pybind11/stl.h>

namespace tamis::binding {
namespace {

KvTokens tokens(const EditTokens& x) {
  const auto [index, stride, count] = x;
  return {address<const int32_t>(index), stride, address<const int32_t>(count)};
}

void gather(const EditShape& shape, const EditArray& x, const EditTokens& index,
            const EditArray& out) {
  run(&kv_gather, gather_args(shape, x, index, out));
}

void merge(int dtype, const EditShape& shape, const EditArray& keys, const EditArray& values,
           std::pair<uintptr_t, uintptr_t> weight_and_mass, const EditTokens& kept,
           const EditTokens& dropped, bool by_values, float tau, const EditOut& out) {
  run(&kv_merge,
      merge_args(dtype, shape, keys, values, weight_and_mass, kept, dropped, by_values, tau, out));
}

}  // namespace

KvGatherArgs gather_args(const EditShape& shape, const EditArray& x, const EditTokens& index,
                         const EditArray& out) {
  KvGatherArgs args{.index = tokens(index)};
  std::tie(args.heads, args.tokens, args.row_bytes) = shape;
  uintptr_t from = 0, to = 0;
  std::tie(from, args.head_stride_bytes, args.token_stride_bytes) = x;
  std::tie(to, args.out_head_stride_bytes, args.out_token_stride_bytes) = out;
  args.x = address<const void>(from);
  args.out = address<void>(to);
  return args;
}

KvMergeArgs merge_args(int dtype, const EditShape& shape, const EditArray& keys,
                       const EditArray& values, std::pair<uintptr_t, uintptr_t> weight_and_mass,
                       const EditTokens& kept, const EditTokens& dropped, bool by_values, float tau,
                       const EditOut& out) {
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
  return args;
}

void bind_kv_edit(py::module_& m) {
  using namespace py::literals;
  m.def("kv_gather", &gather, "shape"_a, "x"_a, "index"_a, "out"_a);
  m.def("kv_merge", &merge, "dtype"_a, "shape"_a, "keys"_a, "values"_a, "weight_and_mass"_a,
        "kept"_a, "dropped"_a, "by_values"_a, "tau"_a, "out"_a);
}

}  // namespace tamis::binding
