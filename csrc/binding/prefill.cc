// Attention of prompts over raw addresses.
#include "binding/prefill.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>

#include "binding/address.h"
#include "binding/cuda.h"
#include "binding/cuda_abi.h"
#include "ops/prefill_attention/prefill_attention.h"

namespace tamis::binding {
namespace {

// Address and three strides; address, stride and address of the counts; pattern heads, then
// addresses of sink and window, then size of blocks, their addresses and the columns' stride.
using Array = std::tuple<uintptr_t, int64_t, int64_t, int64_t>;
using List = std::tuple<uintptr_t, int64_t, uintptr_t>;
using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
using Pattern = std::tuple<int64_t, uintptr_t, uintptr_t, int64_t, uintptr_t, uintptr_t, int64_t>;

PrefillArray array(const Array& x) {
  const auto [data, batch, head, token] = x;
  return {address<const void>(data), batch, head, token};
}

PrefillList list(const List& x) {
  const auto [data, stride, count] = x;
  return {address<const int32_t>(data), stride, address<const int32_t>(count)};
}

PrefillArgs arguments(std::tuple<int, int> dtypes, Shape shape, const Array& q, const Array& keys,
                      const Array& values, const Array& out, uintptr_t lse, float scale,
                      float softcap, bool causal, int64_t first, uintptr_t begin,
                      const Pattern& pattern, const List& rows, const List& columns) {
  PrefillArgs args{.q_dtype = float_dtype("prefill_attention", std::get<0>(dtypes)),
                   .kv_dtype = float_dtype("prefill_attention", std::get<1>(dtypes)),
                   .q = array(q),
                   .keys = array(keys),
                   .values = array(values),
                   .lse = address<float>(lse),
                   .scale = scale,
                   .softcap = softcap,
                   .causal = causal,
                   .first = first,
                   .begin = address<const int32_t>(begin),
                   .rows = list(rows),
                   .columns = list(columns)};
  std::tie(args.batch, args.heads, args.kv_heads, args.queries, args.tokens, args.head_dim) = shape;
  uintptr_t address_of_out = 0;
  std::tie(address_of_out, args.out_batch_stride, args.out_head_stride, args.out_token_stride) =
      out;
  args.out = address<void>(address_of_out);
  const auto [heads, sink, window, size, offsets, blocks, stride] = pattern;
  args.pattern_heads = heads;
  args.sink = address<const int32_t>(sink);
  args.window = address<const int32_t>(window);
  args.blocks = {size, address<const int32_t>(offsets), address<const int32_t>(blocks), stride};
  return args;
}

void attend(std::tuple<int, int> dtypes, Shape shape, const Array& q, const Array& keys,
            const Array& values, const Array& out, uintptr_t lse, float scale, float softcap,
            bool causal, int64_t first, uintptr_t begin, const Pattern& pattern, const List& rows,
            const List& columns) {
  const PrefillArgs args = arguments(dtypes, shape, q, keys, values, out, lse, scale, softcap,
                                     causal, first, begin, pattern, rows, columns);
  run(&prefill_attention, args);
}

// Bytes of a workspace that attend_cuda has a use for.
int64_t workspace_cuda(int32_t device, std::tuple<int, int> dtypes, Shape shape, const Array& q,
                       const Array& keys, const Array& values, const Array& out, uintptr_t lse,
                       float scale, float softcap, bool causal, int64_t first, uintptr_t begin,
                       const Pattern& pattern, const List& rows, const List& columns) {
  const PrefillArgs args = arguments(dtypes, shape, q, keys, values, out, lse, scale, softcap,
                                     causal, first, begin, pattern, rows, columns);
  raise_if_error(check_prefill_call(args));
  return cuda_library().prefill_workspace(args, cuda_device(device));
}

// The same on a device and stream; nothing waits, and lists are not read.
void attend_cuda(int32_t device, uintptr_t stream, std::tuple<int, int> dtypes, Shape shape,
                 const Array& q, const Array& keys, const Array& values, const Array& out,
                 uintptr_t lse, float scale, float softcap, bool causal, int64_t first,
                 uintptr_t begin, const Pattern& pattern, const List& rows, const List& columns,
                 uintptr_t workspace, uintptr_t tickets) {
  PrefillArgs args = arguments(dtypes, shape, q, keys, values, out, lse, scale, softcap, causal,
                               first, begin, pattern, rows, columns);
  args.workspace = address<void>(workspace);
  args.tickets = address<void>(tickets);
  raise_if_error(cuda_library().prefill(args, cuda_device(device), address<void>(stream)));
}

}  // namespace

void bind_prefill(py::module_& m) {
  using namespace py::literals;
  m.def("prefill_attention", &attend, "dtypes"_a, "shape"_a, "q"_a, "keys"_a, "values"_a, "out"_a,
        "lse_ptr"_a, "scale"_a, "softcap"_a, "causal"_a, "first"_a, "begin_ptr"_a, "pattern"_a,
        "rows"_a, "columns"_a);
  m.def("cuda_prefill_attention", &attend_cuda, "device"_a, "stream"_a, "dtypes"_a, "shape"_a,
        "q"_a, "keys"_a, "values"_a, "out"_a, "lse_ptr"_a, "scale"_a, "softcap"_a, "causal"_a,
        "first"_a, "begin_ptr"_a, "pattern"_a, "rows"_a, "columns"_a, "workspace_ptr"_a,
        "tickets_ptr"_a);
  m.def("cuda_prefill_workspace", &workspace_cuda, "device"_a, "dtypes"_a, "shape"_a, "q"_a,
        "keys"_a, "values"_a, "out"_a, "lse_ptr"_a, "scale"_a, "softcap"_a, "causal"_a, "first"_a,
        "begin_ptr"_a, "pattern"_a, "rows"_a, "columns"_a);
}

}  // namespace tamis::binding
