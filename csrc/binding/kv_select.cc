// What a step reads of a KV cache, over raw addresses.
#include "binding/kv_select.h"

#include <pybind11/stl.h>

#include "format/kv_label.h"

namespace tamis::binding {
namespace {

// Rows or, with `bounds`, pairs of rows.
KvUnits rows(bool bounds, int dtype, int64_t units, uintptr_t data, Strides3 strides) {
  KvUnits u{.kind = bounds ? KvSummary::bounds : KvSummary::rows,
            .dtype = float_dtype("kv_select", dtype),
            .units = units,
            .data = address<const void>(data)};
  std::tie(u.batch_stride, u.head_stride, u.unit_stride) = strides;
  return u;
}

KvUnits labels(int32_t channels, int64_t units, uintptr_t records, Strides strides_bytes,
               uintptr_t channel_ids) {
  return {.kind = KvSummary::labels,
          .units = units,
          .data = address<const void>(records),
          .batch_stride = strides_bytes.first,
          .head_stride = strides_bytes.second,
          .labels = {.channels = channels},
          .channels = address<const int32_t>(channel_ids)};
}

void estimate(int dtype, const SelectShape& shape, uintptr_t q, float scale, const KvUnits& units,
              bool log_weight, uintptr_t begin, uintptr_t out) {
  run(&kv_estimate, estimate_args(dtype, shape, q, scale, units, log_weight, begin, out));
}

void mass(int dtype, const MassShape& shape, uintptr_t q, float scale, const KvUnits& keys,
          uintptr_t positions, uintptr_t begin, uintptr_t out) {
  run(&kv_mass, mass_args(dtype, shape, q, scale, keys, positions, begin, out));
}

void select(int64_t heads, int64_t units, uintptr_t scores, int64_t k, uintptr_t budget,
            double top_p, int64_t sink, int64_t recent, int64_t page, uintptr_t begin,
            uintptr_t index, int64_t index_stride, uintptr_t count) {
  run(&kv_select, select_args(heads, units, scores, k, budget, top_p, sink, recent, page, begin,
                              index, index_stride, count));
}

void choose(int dtype, const SelectShape& shape, uintptr_t q, float scale, const KvUnits& units,
            bool log_weight, bool by_row, int64_t k, uintptr_t budget, int64_t sink, int64_t recent,
            int64_t page, uintptr_t begin, uintptr_t index, int64_t index_stride, uintptr_t count) {
  run(&kv_choose,
      KvChooseArgs{.estimate = estimate_args(dtype, shape, q, scale, units, log_weight, begin, 0),
                   .select = select_args(0, 0, 0, k, budget, 0.0, sink, recent, page, 0, index,
                                         index_stride, count),
                   .by_row = by_row});
}

void append_labels(int32_t channels, int dtype, const KeysShape& shape, uintptr_t keys,
                   const Strides3& key_strides, uintptr_t channel_ids, int64_t first, int64_t count,
                   uintptr_t records, const Strides& strides_bytes) {
  run(&kv_append_labels, append_labels_args(channels, dtype, shape, keys, key_strides, channel_ids,
                                            first, count, records, strides_bytes));
}

void summarize(bool bounds, int dtype, const KeysShape& shape, int64_t page, int64_t pages,
               uintptr_t keys, const Strides3& key_strides, uintptr_t out, uintptr_t alike) {
  KvSummarizeArgs args{.kind = bounds ? KvSummary::bounds : KvSummary::rows,
                       .dtype = float_dtype("kv_select", dtype),
                       .pages = pages,
                       .page = page,
                       .keys = address<const void>(keys),
                       .out = address<void>(out),
                       .alike = address<float>(alike)};
  std::tie(args.batch, args.kv_heads, args.head_dim) = shape;
  std::tie(args.key_batch_stride, args.key_head_stride, args.key_token_stride) = key_strides;
  run(&kv_summarize, args);
}

}  // namespace

KvEstimateArgs estimate_args(int dtype, const SelectShape& shape, uintptr_t q, float scale,
                             const KvUnits& units, bool log_weight, uintptr_t begin,
                             uintptr_t out) {
  KvEstimateArgs args{.q_dtype = float_dtype("kv_select", dtype),
                      .q = address<const void>(q),
                      .scale = scale,
                      .units = units,
                      .reduce = log_weight ? KvReduce::log_weight : KvReduce::score,
                      .begin = address<const int32_t>(begin),
                      .out = address<float>(out)};
  std::tie(args.batch, args.kv_heads, args.rows, args.head_dim) = shape;
  return args;
}

KvMassArgs mass_args(int dtype, const MassShape& shape, uintptr_t q, float scale,
                     const KvUnits& keys, uintptr_t positions, uintptr_t begin, uintptr_t out) {
  KvMassArgs args{.q_dtype = float_dtype("kv_select", dtype),
                  .q = address<const void>(q),
                  .scale = scale,
                  .keys = keys,
                  .positions = address<const int32_t>(positions),
                  .begin = address<const int32_t>(begin),
                  .out = address<float>(out)};
  std::tie(args.batch, args.kv_heads, args.heads, args.queries, args.head_dim) = shape;
  return args;
}

KvSelectArgs select_args(int64_t heads, int64_t units, uintptr_t scores, int64_t k,
                         uintptr_t budget, double top_p, int64_t sink, int64_t recent, int64_t page,
                         uintptr_t begin, uintptr_t index, int64_t index_stride, uintptr_t count) {
  return {.heads = heads,
          .units = units,
          .scores = address<const float>(scores),
          .budget = address<const int32_t>(budget),
          .k = k,
          .top_p = top_p,
          .sink = sink,
          .recent = recent,
          .page = page,
          .begin = address<const int32_t>(begin),
          .index = address<int32_t>(index),
          .index_stride = index_stride,
          .count = address<int32_t>(count)};
}

KvAppendLabelsArgs append_labels_args(int32_t channels, int dtype, const KeysShape& shape,
                                      uintptr_t keys, const Strides3& key_strides,
                                      uintptr_t channel_ids, int64_t first, int64_t count,
                                      uintptr_t records, const Strides& strides_bytes) {
  KvAppendLabelsArgs args{.labels = {.channels = channels},
                          .keys_dtype = float_dtype("kv_select", dtype),
                          .keys = address<const void>(keys),
                          .channels = address<const int32_t>(channel_ids),
                          .first = first,
                          .count = count,
                          .records = address<void>(records),
                          .batch_stride_bytes = strides_bytes.first,
                          .head_stride_bytes = strides_bytes.second};
  std::tie(args.batch, args.kv_heads, args.head_dim) = shape;
  std::tie(args.key_batch_stride, args.key_head_stride, args.key_token_stride) = key_strides;
  return args;
}

void bind_kv_select(py::module_& m) {
  using namespace py::literals;
  py::class_<KvUnits>(m, "KvUnits").def_readonly("units", &KvUnits::units);
  m.def("kv_row_units", &rows, "bounds"_a, "dtype"_a, "units"_a, "data_ptr"_a, "strides"_a);
  m.def("kv_label_units", &labels, "channels"_a, "units"_a, "records_ptr"_a, "strides_bytes"_a,
        "channels_ptr"_a);
  m.def(
      "kv_label_bytes", [](int32_t channels) { return KvLabelLayout{channels}.bytes(); },
      "channels"_a);
  m.def("kv_estimate", &estimate, "dtype"_a, "shape"_a, "q_ptr"_a, "scale"_a, "units"_a,
        "log_weight"_a, "begin_ptr"_a, "out_ptr"_a);
  m.def("kv_mass", &mass, "dtype"_a, "shape"_a, "q_ptr"_a, "scale"_a, "keys"_a, "positions_ptr"_a,
        "begin_ptr"_a, "out_ptr"_a);
  m.def("kv_select", &select, "heads"_a, "units"_a, "scores_ptr"_a, "k"_a, "budget_ptr"_a,
        "top_p"_a, "sink"_a, "recent"_a, "page"_a, "begin_ptr"_a, "index_ptr"_a, "index_stride"_a,
        "count_ptr"_a);
  m.def("kv_choose", &choose, "dtype"_a, "shape"_a, "q_ptr"_a, "scale"_a, "units"_a, "log_weight"_a,
        "by_row"_a, "k"_a, "budget_ptr"_a, "sink"_a, "recent"_a, "page"_a, "begin_ptr"_a,
        "index_ptr"_a, "index_stride"_a, "count_ptr"_a);
  m.def("kv_summarize", &summarize, "bounds"_a, "dtype"_a, "shape"_a, "page"_a, "pages"_a,
        "keys_ptr"_a, "key_strides"_a, "out_ptr"_a, "alike_ptr"_a);
  m.def("kv_append_labels", &append_labels, "channels"_a, "dtype"_a, "shape"_a, "keys_ptr"_a,
        "key_strides"_a, "channels_ptr"_a, "first"_a, "count"_a, "records_ptr"_a,
        "strides_bytes"_a);
}

}  // namespace tamis::binding
