// The KV cache's operators over raw addresses.
#include "binding/kv.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "base/dtype.h"
#include "binding/address.h"
#include "binding/kernel_row.h"
#include "format/kv_page.h"
#include "ops/kv_quantize/kv_quantize.h"
#include "ops/kv_select/kv_select.h"
#include "ops/prefill_attention/prefill_attention.h"
#include "ops/sparse_attention/sparse_attention.h"

namespace tamis::binding {
namespace {

KvPageLayout make_layout(int32_t head_dim, int32_t tokens, int32_t key_bits, int32_t value_bits,
                         int32_t group) {
  const KvPageLayout layout{.head_dim = head_dim,
                            .tokens = tokens,
                            .key_bits = key_bits,
                            .value_bits = value_bits,
                            .group = group};
  raise_if_error(check_kv_page(layout));
  return layout;
}

void quantize(const KvPageLayout& layout, int dtype, int64_t heads, int64_t pages, uintptr_t keys,
              const Strides& key_strides, uintptr_t values, const Strides& value_strides,
              uintptr_t out, int64_t out_stride_bytes) {
  run(&kv_quantize, quantize_args(layout, dtype, heads, pages, keys, key_strides, values,
                                  value_strides, out, out_stride_bytes));
}

void unpack(const KvPageLayout& layout, uintptr_t records, int64_t count, uintptr_t keys,
            uintptr_t values) {
  const py::gil_scoped_release release;
  const int64_t elements = int64_t{layout.tokens} * layout.head_dim;
  for (int64_t i = 0; i < count; ++i) {
    unpack_kv_page(layout, address<const uint8_t>(records) + i * layout.bytes(),
                   address<float>(keys) + i * elements, address<float>(values) + i * elements);
  }
}

// A segment's lists, as addresses or 0.
struct Lists {
  uintptr_t index = 0;
  int64_t index_stride = 0;
  uintptr_t count = 0, begin = 0, end = 0, bias = 0;
};

void set_lists(const Lists& lists, KvSegment* s) {
  s->index = address<const int32_t>(lists.index);
  s->index_stride = lists.index_stride;
  s->count = address<const int32_t>(lists.count);
  s->begin = address<const int32_t>(lists.begin);
  s->end = address<const int32_t>(lists.end);
  s->bias = address<const float>(lists.bias);
}

KvSegment dense_segment(int dtype, int64_t tokens, uintptr_t keys, Strides3 key_strides,
                        uintptr_t values, Strides3 value_strides, const Lists& lists) {
  constexpr KvStorage kStorage[] = {KvStorage::f32, KvStorage::f16, KvStorage::bf16};
  KvSegment s{.storage = kStorage[static_cast<int>(float_dtype("sparse_attention", dtype))],
              .tokens = tokens,
              .keys = address<const void>(keys),
              .values = address<const void>(values)};
  std::tie(s.key_batch_stride, s.key_head_stride, s.key_token_stride) = key_strides;
  std::tie(s.value_batch_stride, s.value_head_stride, s.value_token_stride) = value_strides;
  set_lists(lists, &s);
  return s;
}

KvSegment lowrank_segment(int dtype, int64_t tokens, uintptr_t coordinates, Strides strides,
                          int64_t rank, uintptr_t basis, int64_t pairs, uintptr_t turns,
                          uintptr_t values, Strides3 value_strides, const Lists& lists) {
  constexpr KvStorage kStorage[] = {KvStorage::lowrank_f32, KvStorage::lowrank_f16,
                                    KvStorage::lowrank_bf16};
  KvSegment s = dense_segment(dtype, tokens, coordinates, {strides.first, 0, strides.second},
                              values, value_strides, lists);
  s.storage = kStorage[static_cast<int>(float_dtype("sparse_attention", dtype))];
  s.low_rank = {.rank = rank,
                .basis = address<const void>(basis),
                .pairs = pairs,
                .turns = address<const float>(turns)};
  return s;
}

KvSegment page_segment(const KvPageLayout& layout, int64_t pages, uintptr_t records,
                       Strides strides_bytes, const Lists& lists) {
  KvSegment s{.storage = KvStorage::pages,
              .layout = layout,
              .tokens = pages * layout.tokens,
              .keys = address<const void>(records),
              .key_batch_stride = strides_bytes.first,
              .key_head_stride = strides_bytes.second};
  set_lists(lists, &s);
  return s;
}

void attend(int dtype, const AttentionShape& shape, uintptr_t q, uintptr_t out, uintptr_t lse,
            float scale, float softcap, const std::vector<KvSegment>& segments) {
  run(&sparse_attention, attention_args(dtype, shape, q, out, lse, scale, softcap, segments));
}

py::list kernel_rows() {
  py::list rows;
  const auto add = [&rows](const char* name, const char* op, const char* format, const char* w,
                           const char* x, IsaBits isa, int tile_m, int tile_n) {
    rows.append(dict_of({name, op, format, w, x, {}, tile_m, tile_n, {}}, isa));
  };
  for (const AttentionRow& row : sparse_attention_kernels()) {
    const bool pages = row.storage == KvStorage::pages;
    const KvStorage elements = elements_of(row.storage);
    add(row.name, "sparse_attention",
        pages                     ? "kv_page"
        : elements == row.storage ? "dense"
                                  : "lowrank",
        pages ? "codes" : name_of(elements), name_of(row.q_dtype), row.isa, kMaxRows, 32);
  }
  for (const PrefillRow& row : prefill_attention_kernels()) {
    const char* type = row.bf16 ? "bf16" : "f32";
    add(row.name, "prefill_attention", "dense", type, type, row.isa, kPrefillRows, kPrefillKeys);
  }
  for (const KvQuantizeRow& row : kv_quantize_kernels()) {
    add(row.name, "kv_quantize", "kv_page", "codes", name_of(row.dtype), row.isa, 1, 32);
  }
  for (const KvScoreRow& row : kv_score_kernels()) {
    const bool labels = row.kind == KvSummary::labels;
    add(row.name, "kv_select", labels ? "kv_label" : "dense", labels ? "codes" : name_of(row.dtype),
        name_of(row.q_dtype), row.isa, kSelectRows, 16);
  }
  for (const KvSummaryRow& row : kv_summary_kernels()) {
    const char* type = name_of(row.dtype);
    add(row.name, "kv_select", "dense", type, type, row.isa, 1, 16);
  }
  for (const KvReduceRow& row : kv_reduce_kernels()) {
    add(row.name, "kv_select", "scores", "f32", "f32", row.isa, 1, 16);
  }
  return rows;
}

}  // namespace

KvQuantizeArgs quantize_args(const KvPageLayout& layout, int dtype, int64_t heads, int64_t pages,
                             uintptr_t keys, const Strides& key_strides, uintptr_t values,
                             const Strides& value_strides, uintptr_t out,
                             int64_t out_stride_bytes) {
  return {.layout = layout,
          .dtype = float_dtype("kv_quantize", dtype),
          .heads = heads,
          .pages = pages,
          .keys = address<const void>(keys),
          .values = address<const void>(values),
          .key_head_stride = key_strides.first,
          .key_token_stride = key_strides.second,
          .value_head_stride = value_strides.first,
          .value_token_stride = value_strides.second,
          .out = address<void>(out),
          .out_stride_bytes = out_stride_bytes};
}

SparseAttentionArgs attention_args(int dtype, const AttentionShape& shape, uintptr_t q,
                                   uintptr_t out, uintptr_t lse, float scale, float softcap,
                                   std::span<const KvSegment> segments) {
  SparseAttentionArgs args{.q_dtype = float_dtype("sparse_attention", dtype),
                           .q = address<const void>(q),
                           .out = address<void>(out),
                           .lse = address<float>(lse),
                           .scale = scale,
                           .softcap = softcap,
                           .segments = segments};
  std::tie(args.batch, args.kv_heads, args.rows, args.head_dim) = shape;
  return args;
}

void bind_kv(py::module_& m) {
  using namespace py::literals;
  py::class_<KvPageLayout>(m, "KvPageLayout")
      .def(py::init(&make_layout), "head_dim"_a, "tokens"_a, "key_bits"_a, "value_bits"_a,
           "group"_a)
      .def_readonly("head_dim", &KvPageLayout::head_dim)
      .def_readonly("tokens", &KvPageLayout::tokens)
      .def_readonly("key_bits", &KvPageLayout::key_bits)
      .def_readonly("value_bits", &KvPageLayout::value_bits)
      .def_readonly("group", &KvPageLayout::group)
      .def_property_readonly("nbytes", &KvPageLayout::bytes)
      .def_property_readonly("key_scale", &KvPageLayout::key_scale)
      .def_property_readonly("key_min", &KvPageLayout::key_min);
  py::class_<Lists>(m, "KvLists")
      .def(py::init<uintptr_t, int64_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>(),
           "index"_a = 0, "index_stride"_a = 0, "count"_a = 0, "begin"_a = 0, "end"_a = 0,
           "bias"_a = 0);
  py::class_<KvSegment>(m, "KvSegment").def_readonly("tokens", &KvSegment::tokens);
  m.def("kv_dense_segment", &dense_segment, "dtype"_a, "tokens"_a, "keys_ptr"_a, "key_strides"_a,
        "values_ptr"_a, "value_strides"_a, "lists"_a);
  m.def("kv_lowrank_segment", &lowrank_segment, "dtype"_a, "tokens"_a, "coordinates_ptr"_a,
        "strides"_a, "rank"_a, "basis_ptr"_a, "pairs"_a, "turns_ptr"_a, "values_ptr"_a,
        "value_strides"_a, "lists"_a);
  m.def("kv_page_segment", &page_segment, "layout"_a, "pages"_a, "records_ptr"_a, "strides_bytes"_a,
        "lists"_a);
  m.def("kv_quantize", &quantize, "layout"_a, "dtype"_a, "heads"_a, "pages"_a, "keys_ptr"_a,
        "key_strides"_a, "values_ptr"_a, "value_strides"_a, "out_ptr"_a, "out_stride_bytes"_a);
  m.def("kv_unpack", &unpack, "layout"_a, "records_ptr"_a, "count"_a, "keys_ptr"_a, "values_ptr"_a);
  m.def("sparse_attention", &attend, "dtype"_a, "shape"_a, "q_ptr"_a, "out_ptr"_a, "lse_ptr"_a,
        "scale"_a, "softcap"_a, "segments"_a);
  m.def("kv_kernels", &kernel_rows);
}

}  // namespace tamis::binding
