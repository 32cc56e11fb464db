// The KV cache's operators on a device, over raw addresses that torch gives as integers. Nothing
// here allocates, copies or waits.
#include "binding/cuda_kv.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "binding/address.h"
#include "binding/cuda.h"
#include "binding/cuda_abi.h"
#include "binding/kv.h"
#include "binding/kv_edit.h"
#include "binding/kv_fetch.h"
#include "binding/kv_select.h"

namespace tamis::binding {
namespace {

void quantize(int32_t device, uintptr_t stream, const KvPageLayout& layout, int dtype,
              int64_t heads, int64_t pages, uintptr_t keys, const Strides& key_strides,
              uintptr_t values, const Strides& value_strides, uintptr_t out,
              int64_t out_stride_bytes) {
  const KvQuantizeArgs args = quantize_args(layout, dtype, heads, pages, keys, key_strides, values,
                                            value_strides, out, out_stride_bytes);
  raise_if_error(cuda_library().kv_quantize(args, cuda_device(device), address<void>(stream)));
}

// 0 when launched; else the bytes of workspace that the call wants.
int64_t attend(int32_t device, uintptr_t stream, int dtype, const AttentionShape& shape,
               uintptr_t q, uintptr_t out, uintptr_t lse, float scale, float softcap,
               const std::vector<KvSegment>& segments, uintptr_t workspace,
               int64_t workspace_bytes) {
  const SparseAttentionCudaArgs args{
      .attention = attention_args(dtype, shape, q, out, lse, scale, softcap, segments),
      .workspace = address<void>(workspace),
      .workspace_bytes = workspace_bytes};
  const CudaDevice& facts = cuda_device(device);
  int64_t wanted = 0;
  raise_if_error(cuda_library().attention_workspace(args.attention, facts, &wanted));
  if (wanted > workspace_bytes) return wanted;
  raise_if_error(cuda_library().attention(args, facts, address<void>(stream)));
  return 0;
}

// The same.
int64_t estimate(int32_t device, uintptr_t stream, int dtype, const SelectShape& shape, uintptr_t q,
                 float scale, const KvUnits& units, bool log_weight, uintptr_t begin, uintptr_t out,
                 uintptr_t workspace, int64_t workspace_bytes) {
  const KvEstimateArgs args = estimate_args(dtype, shape, q, scale, units, log_weight, begin, out);
  const int64_t wanted = cuda_library().estimate_workspace(args);
  if (wanted > workspace_bytes) return wanted;
  raise_if_error(cuda_library().kv_estimate(args, address<void>(workspace), workspace_bytes,
                                            cuda_device(device), address<void>(stream)));
  return 0;
}

// The same.
int64_t mass(int32_t device, uintptr_t stream, int dtype, const MassShape& shape, uintptr_t q,
             float scale, const KvUnits& keys, uintptr_t positions, uintptr_t begin, uintptr_t out,
             uintptr_t workspace, int64_t workspace_bytes) {
  const KvMassArgs args = mass_args(dtype, shape, q, scale, keys, positions, begin, out);
  const CudaDevice& facts = cuda_device(device);
  raise_if_error(check_mass_cuda(args));
  const int64_t wanted = cuda_library().mass_workspace(args, facts);
  if (wanted > workspace_bytes) return wanted;
  raise_if_error(cuda_library().kv_mass(args, address<void>(workspace), workspace_bytes, facts,
                                        address<void>(stream)));
  return 0;
}

void select(int32_t device, uintptr_t stream, int64_t heads, int64_t units, uintptr_t scores,
            int64_t k, uintptr_t budget, double top_p, int64_t sink, int64_t recent, int64_t page,
            uintptr_t begin, uintptr_t index, int64_t index_stride, uintptr_t count) {
  const KvSelectArgs args = select_args(heads, units, scores, k, budget, top_p, sink, recent, page,
                                        begin, index, index_stride, count);
  raise_if_error(cuda_library().kv_select(args, cuda_device(device), address<void>(stream)));
}

// As estimate, of units that the same call scores; -1, and nothing done, where no kernel does both.
int64_t choose(int32_t device, uintptr_t stream, int dtype, const SelectShape& shape, uintptr_t q,
               float scale, const KvUnits& units, bool by_row, int64_t k, uintptr_t budget,
               int64_t sink, int64_t recent, int64_t page, uintptr_t begin, uintptr_t index,
               int64_t index_stride, uintptr_t count, uintptr_t workspace,
               int64_t workspace_bytes) {
  const int64_t heads = std::get<0>(shape) * std::get<1>(shape);
  const KvChooseArgs args{
      .estimate = estimate_args(dtype, shape, q, scale, units, !by_row, begin, 0),
      .select = select_args(heads, units.units, 0, k, budget, 0.0, sink, recent, page, begin, index,
                            index_stride, count),
      .by_row = by_row};
  const CudaDevice& facts = cuda_device(device);
  if (!cuda_library().choose_fits(args, facts)) return -1;
  const int64_t wanted = cuda_library().choose_workspace(args);
  if (wanted > workspace_bytes) return wanted;
  raise_if_error(cuda_library().kv_choose(args, address<void>(workspace), workspace_bytes, facts,
                                          address<void>(stream)));
  return 0;
}

// False, and nothing done, where no kernel does both. scales: of attention, and c of softcap.
// new_label: the last token's is written first.
bool attend_chosen(int32_t device, uintptr_t stream, int dtype, const SelectShape& shape,
                   uintptr_t q, uintptr_t out, uintptr_t lse, std::pair<float, float> scales,
                   const KvSegment& segment, const KvUnits& units, int64_t k, uintptr_t budget,
                   int64_t sink, int64_t recent, uintptr_t begin, bool new_label) {
  const int64_t heads = std::get<0>(shape) * std::get<1>(shape);
  const ChosenAttentionArgs args{
      .choose = {.estimate = estimate_args(dtype, shape, q, scales.first, units, true, begin, 0),
                 .select = select_args(heads, units.units, 0, k, budget, 0.0, sink, recent, 1,
                                       begin, 0, units.units, 0)},
      .attention =
          attention_args(dtype, shape, q, out, lse, scales.first, scales.second, {&segment, 1}),
      .new_label = new_label};
  const CudaDevice& facts = cuda_device(device);
  if (!cuda_library().chosen_fits(args, facts)) return false;
  raise_if_error(cuda_library().chosen_attention(args, facts, address<void>(stream)));
  return true;
}

void append_labels(int32_t device, uintptr_t stream, int32_t channels, int dtype,
                   const KeysShape& shape, uintptr_t keys, const Strides3& key_strides,
                   uintptr_t channel_ids, int64_t first, int64_t count, uintptr_t records,
                   const Strides& strides_bytes) {
  const KvAppendLabelsArgs args = append_labels_args(
      channels, dtype, shape, keys, key_strides, channel_ids, first, count, records, strides_bytes);
  raise_if_error(cuda_library().kv_append_labels(args, cuda_device(device), address<void>(stream)));
}

// keys, values: [b, g, width of the list, d].
void rebuild(int32_t device, uintptr_t stream, std::tuple<int64_t, int64_t, int64_t> shape,
             const KvSegment& segment, uintptr_t keys, uintptr_t values) {
  KvRebuildArgs args{
      .segment = segment, .keys = address<void>(keys), .values = address<void>(values)};
  std::tie(args.batch, args.kv_heads, args.head_dim) = shape;
  raise_if_error(cuda_library().kv_rebuild(args, cuda_device(device), address<void>(stream)));
}

void gather(int32_t device, uintptr_t stream, const EditShape& shape, const EditArray& x,
            const EditTokens& index, const EditArray& out) {
  raise_if_error(cuda_library().kv_gather(gather_args(shape, x, index, out), cuda_device(device),
                                          address<void>(stream)));
}

// As estimate.
int64_t merge(int32_t device, uintptr_t stream, int dtype, const EditShape& shape,
              const EditArray& keys, const EditArray& values,
              std::pair<uintptr_t, uintptr_t> weight_and_mass, const EditTokens& kept,
              const EditTokens& dropped, bool by_values, float tau, const EditOut& out,
              uintptr_t workspace, int64_t workspace_bytes) {
  const KvMergeArgs args =
      merge_args(dtype, shape, keys, values, weight_and_mass, kept, dropped, by_values, tau, out);
  const CudaDevice& facts = cuda_device(device);
  raise_if_error(check_merge_cuda(args, facts));
  const int64_t wanted = merge_workspace(args);
  if (wanted > workspace_bytes) return wanted;
  raise_if_error(cuda_library().kv_merge(args, address<void>(workspace), workspace_bytes, facts,
                                         address<void>(stream)));
  return 0;
}

void fetch(int32_t device, uintptr_t stream, const FetchShape& shape, const FetchLists& lists,
           const FetchMaps& maps, const FetchFound& found, const FetchRows& rows) {
  raise_if_error(cuda_library().kv_fetch(fetch_args(shape, lists, maps, found, rows),
                                         cuda_device(device), address<void>(stream)));
}

}  // namespace

void bind_cuda_kv(py::module_& m) {
  using namespace py::literals;
  m.def("cuda_kv_quantize", &quantize, "device"_a, "stream"_a, "layout"_a, "dtype"_a, "heads"_a,
        "pages"_a, "keys_ptr"_a, "key_strides"_a, "values_ptr"_a, "value_strides"_a, "out_ptr"_a,
        "out_stride_bytes"_a);
  m.def("cuda_sparse_attention", &attend, "device"_a, "stream"_a, "dtype"_a, "shape"_a, "q_ptr"_a,
        "out_ptr"_a, "lse_ptr"_a, "scale"_a, "softcap"_a, "segments"_a, "workspace_ptr"_a,
        "workspace_bytes"_a);
  m.def("cuda_kv_estimate", &estimate, "device"_a, "stream"_a, "dtype"_a, "shape"_a, "q_ptr"_a,
        "scale"_a, "units"_a, "log_weight"_a, "begin_ptr"_a, "out_ptr"_a, "workspace_ptr"_a,
        "workspace_bytes"_a);
  m.def("cuda_kv_mass", &mass, "device"_a, "stream"_a, "dtype"_a, "shape"_a, "q_ptr"_a, "scale"_a,
        "keys"_a, "positions_ptr"_a, "begin_ptr"_a, "out_ptr"_a, "workspace_ptr"_a,
        "workspace_bytes"_a);
  m.def("cuda_kv_select", &select, "device"_a, "stream"_a, "heads"_a, "units"_a, "scores_ptr"_a,
        "k"_a, "budget_ptr"_a, "top_p"_a, "sink"_a, "recent"_a, "page"_a, "begin_ptr"_a,
        "index_ptr"_a, "index_stride"_a, "count_ptr"_a);
  m.def("cuda_kv_choose", &choose, "device"_a, "stream"_a, "dtype"_a, "shape"_a, "q_ptr"_a,
        "scale"_a, "units"_a, "by_row"_a, "k"_a, "budget_ptr"_a, "sink"_a, "recent"_a, "page"_a,
        "begin_ptr"_a, "index_ptr"_a, "index_stride"_a, "count_ptr"_a, "workspace_ptr"_a,
        "workspace_bytes"_a);
  m.def("cuda_chosen_attention", &attend_chosen, "device"_a, "stream"_a, "dtype"_a, "shape"_a,
        "q_ptr"_a, "out_ptr"_a, "lse_ptr"_a, "scales"_a, "segment"_a, "units"_a, "k"_a,
        "budget_ptr"_a, "sink"_a, "recent"_a, "begin_ptr"_a, "new_label"_a);
  m.def("cuda_kv_rebuild", &rebuild, "device"_a, "stream"_a, "shape"_a, "segment"_a, "keys_ptr"_a,
        "values_ptr"_a);
  m.def("cuda_kv_gather", &gather, "device"_a, "stream"_a, "shape"_a, "x"_a, "index"_a, "out"_a);
  m.def("cuda_kv_merge", &merge, "device"_a, "stream"_a, "dtype"_a, "shape"_a, "keys"_a, "values"_a,
        "weight_and_mass"_a, "kept"_a, "dropped"_a, "by_values"_a, "tau"_a, "out"_a,
        "workspace_ptr"_a, "workspace_bytes"_a);
  m.def("cuda_kv_fetch", &fetch, "device"_a, "stream"_a, "shape"_a, "lists"_a, "maps"_a, "found"_a,
        "rows"_a);
  m.def("cuda_kv_append_labels", &append_labels, "device"_a, "stream"_a, "channels"_a, "dtype"_a,
        "shape"_a, "keys_ptr"_a, "key_strides"_a, "channels_ptr"_a, "first"_a, "count"_a,
        "records_ptr"_a, "strides_bytes"_a);
}

}  // namespace tamis::binding
