// pack and import_nvidia_24 over NumPy arrays.
#include "binding/pack.h"

#include <cstdint>
#include <string>

#include "base/dtype.h"
#include "base/status.h"
#include "binding/array.h"
#include "format/format.h"
#include "format/matrix.h"

namespace tamis::binding {
namespace {

DenseView weights(const py::object& w, const std::string& w_dtype, const py::object& keep) {
  const DType dtype = dtype_from("pack", "w_dtype", w_dtype);
  if (!is_float(dtype)) {
    throw py::type_error("pack: w_dtype: got " + std::string(name_of(dtype)) +
                         ", wanted f32, f16 or bf16");
  }
  DenseView view = dense_view("pack", "w", w, dtype);
  if (keep.is_none()) return view;
  const TensorView mask = contiguous_view("pack", "keep", keep, kBool);
  const auto shape = keep.attr("shape");
  if (!shape.equal(w.attr("shape"))) {
    throw py::value_error("pack: keep: got shape " + py::str(shape).cast<std::string>() +
                          ", wanted the weights' " + py::str(w.attr("shape")).cast<std::string>());
  }
  view.keep = static_cast<const uint8_t*>(mask.data);
  return view;
}

py::dict pack_arrays(const DenseView& w, const PackSpec& spec) {
  PackSizes sizes;
  Status status;
  {
    const py::gil_scoped_release release;
    status = pack_sizes(w, spec, &sizes);
  }
  raise_if_error(status);

  py::dict arrays;
  PackBuffers out;
  const auto add = [&](const char* name, Element element, std::initializer_list<int64_t> shape) {
    py::array array = new_array(element, shape);
    arrays[name] = array;
    return array.mutable_data();
  };
  out.values = add("values", element_of(spec.dtype), {sizes.values});
  const bool groups = spec.format == Format::groupq;
  if (spec.format == Format::bitmap || spec.format == Format::nm || groups) {
    const int64_t words = mask_words(groups ? w.cols / spec.group_size : w.cols);
    out.mask = static_cast<uint64_t*>(add("mask", kWord, {w.rows, words}));
  }
  if (sizes.row_offsets > 0) {
    out.row_offsets = static_cast<int64_t*>(add("row_offsets", kInt64, {sizes.row_offsets}));
  }
  if (spec.format == Format::csr || spec.format == Format::block) {
    out.col_indices = static_cast<int32_t*>(add("col_indices", kInt32, {sizes.col_indices}));
  }
  if (spec.format == Format::csr8) {
    out.col_bytes = static_cast<uint8_t*>(add("col_indices", kUint8, {sizes.col_bytes}));
  }
  if (spec.dtype == DType::i8) {
    const int64_t groups = scale_groups(w.cols, spec.group_size);
    out.scales = static_cast<float*>(add("scales", kFloat32, {w.rows, groups}));
  }
  if (groups) {
    void* scales = add("scales", kFloat16, {sizes.group_scales / 2, 2});
    out.group_scales = static_cast<uint16_t*>(scales);
  }
  {
    const py::gil_scoped_release release;
    status = pack(w, spec, out);
  }
  raise_if_error(status);
  return arrays;
}

py::array import_nvidia_24_array(const py::object& meta, int64_t rows, int64_t cols) {
  constexpr int64_t kLimit = INT32_MAX;
  const TensorView view = contiguous_view("import_nvidia_24", "meta", meta, kUint32);
  if (rows < 0 || rows > kLimit || cols < 0 || cols > kLimit || cols % 4 != 0 ||
      view.size != ceil_div(rows * (cols / 4), 8)) {
    throw py::value_error("import_nvidia_24: meta: got " + std::to_string(view.size) +
                          " words for " + std::to_string(rows) + " x " + std::to_string(cols) +
                          ", wanted one for every 8 groups of 4 columns");
  }
  py::array mask = new_array(kWord, {rows, mask_words(cols)});
  raise_if_error(import_nvidia_24(static_cast<const uint32_t*>(view.data), rows, cols,
                                  static_cast<uint64_t*>(mask.mutable_data())));
  return mask;
}

}  // namespace

void bind_pack(py::module_& m) {
  using namespace py::literals;
  m.def(
      "pack",
      [](const std::string& format, const py::object& w, const std::string& w_dtype,
         const py::object& keep, const std::string& dtype, int32_t keep_n, int32_t of,
         int32_t block_rows, int32_t block_cols, int64_t group_size, int32_t code_limit) {
        const PackSpec spec{.format = format_from("pack", format),
                            .dtype = dtype_from("pack", "dtype", dtype),
                            .keep = keep_n,
                            .of = of,
                            .block_rows = block_rows,
                            .block_cols = block_cols,
                            .group_size = group_size,
                            .code_limit = code_limit};
        return pack_arrays(weights(w, w_dtype, keep), spec);
      },
      "format"_a, "w"_a, "w_dtype"_a, "keep"_a.none(true), "dtype"_a, py::kw_only(), "keep_n"_a = 0,
      "of"_a = 0, "block_rows"_a = 0, "block_cols"_a = 0, "group_size"_a = 0, "code_limit"_a = 127);
  m.def("import_nvidia_24", &import_nvidia_24_array, "meta"_a, "rows"_a, "cols"_a);
}

}  // namespace tamis::binding
