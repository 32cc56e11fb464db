// Matrix from a dict of arrays, and back to dense.
#include "binding/matrix.h"

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "base/status.h"
#include "binding/cost.h"
#include "format/format.h"
#include "ops/spmm/spmm.h"

namespace tamis::binding {
namespace {

// Looks arrays up by name, remembers them, and refuses names nobody asked for.
class ArrayReader {
 public:
  ArrayReader(const py::dict& arrays, std::array<py::object, 5>& kept)
      : arrays_(arrays), kept_(kept) {}

  // A missing array is an empty one: check_sizes says which lengths the format wants.
  TensorView read(const char* name, Element element) {
    if (!arrays_.contains(name)) return {};
    kept_[found_] = arrays_[name];
    return contiguous_view("Matrix", name, kept_[found_++], element);
  }

  void refuse_unknown() const {
    if (found_ == arrays_.size()) return;
    throw py::value_error("Matrix: arrays: got " + py::repr(py::list(arrays_)).cast<std::string>() +
                          ", wanted only values, mask, row_offsets, col_indices, scales");
  }

 private:
  const py::dict& arrays_;
  std::array<py::object, 5>& kept_;
  size_t found_ = 0;
};

}  // namespace

Matrix::Matrix(const std::string& format, const py::dict& arrays, const std::string& dtype,
               const MatrixSpec& spec, bool check) {
  view_ = {.format = format_from("Matrix", format),
           .rows = spec.rows,
           .cols = spec.cols,
           .dtype = dtype_from("Matrix", "dtype", dtype),
           .keep = spec.keep,
           .of = spec.of,
           .block_rows = spec.block_rows,
           .block_cols = spec.block_cols,
           .group_size = spec.group_size};
  ArrayReader reader(arrays, arrays_);
  const TensorView values = reader.read("values", element_of(view_.dtype));
  const TensorView mask = reader.read("mask", kWord);
  const TensorView row_offsets = reader.read("row_offsets", kInt64);
  // One name for either kind of column index: a format has one of them.
  const bool narrow = view_.format == Format::csr8;
  const TensorView columns = reader.read("col_indices", narrow ? kUint8 : kInt32);
  // Likewise of scales.
  const bool groups = view_.format == Format::groupq;
  const TensorView scales = reader.read("scales", groups ? kFloat16 : kFloat32);
  reader.refuse_unknown();

  view_.values = values.data;
  view_.nnz = view_.dtype == DType::u4 ? 2 * values.size : values.size;
  view_.mask = static_cast<const uint64_t*>(mask.data);
  view_.row_offsets = static_cast<const int64_t*>(row_offsets.data);
  if (narrow) {
    view_.col_bytes = static_cast<const uint8_t*>(columns.data);
  } else {
    view_.col_indices = static_cast<const int32_t*>(columns.data);
  }
  if (groups) {
    view_.group_scales = static_cast<const uint16_t*>(scales.data);
  } else {
    view_.scales = static_cast<const float*>(scales.data);
  }
  const PackSizes sizes{.values = values.size,
                        .mask = mask.size,
                        .row_offsets = row_offsets.size,
                        .col_indices = narrow ? 0 : columns.size,
                        .col_bytes = narrow ? columns.size : 0,
                        .scales = groups ? 0 : scales.size,
                        .group_scales = groups ? scales.size : 0};
  Status status;
  {
    const py::gil_scoped_release release;
    status = check ? tamis::check(view_, sizes) : check_sizes(view_, sizes);
  }
  raise_if_error(status);
  // From here on every i8 view says how many columns share a scale.
  if (view_.dtype == DType::i8 && view_.group_size == 0) view_.group_size = view_.cols;
}

py::array Matrix::unpack() const {
  const DType dtype = is_float(view_.dtype) ? view_.dtype : DType::f32;
  py::array out = new_array(element_of(dtype), {view_.rows, view_.cols});
  Status status;
  {
    void* data = out.mutable_data();
    const py::gil_scoped_release release;
    status = tamis::unpack(view_, data, view_.cols);
  }
  raise_if_error(status);
  return out;
}

py::array Matrix::unpack_keep() const {
  py::array out = new_array(kBool, {view_.rows, view_.cols});
  Status status;
  {
    auto* data = static_cast<uint8_t*>(out.mutable_data());
    const py::gil_scoped_release release;
    status = tamis::unpack_keep(view_, data);
  }
  raise_if_error(status);
  return out;
}

std::string Matrix::kernel(int64_t m, const std::string& x_dtype) const {
  const SpmmArgs args{.w = view_, .x_dtype = dtype_from("kernel", "x_dtype", x_dtype), .m = m};
  const SpmmRow* row = choose_spmm(describe(args), active_isa());
  if (row == nullptr) {
    raise_if_error(error(Code::no_kernel,
                         "kernel: no %s kernel takes %s weights and %s activations",
                         name_of(view_.format), name_of(view_.dtype), name_of(args.x_dtype)));
  }
  return row->name;
}

int64_t Matrix::dense_above(const std::string& x_dtype) const {
  const SpmmArgs args{.w = view_, .x_dtype = dtype_from("dense_above", "x_dtype", x_dtype), .m = 1};
  return binding::dense_above(describe(args));
}

void bind_matrix(py::module_& m) {
  using namespace py::literals;
  py::class_<Matrix>(m, "Matrix", "A checked, borrowed view of a compressed matrix.")
      .def(py::init([](const std::string& format, const py::dict& arrays, int64_t rows,
                       int64_t cols, const std::string& dtype, int32_t keep, int32_t of,
                       int32_t block_rows, int32_t block_cols, int64_t group_size, bool check) {
             return Matrix(format, arrays, dtype,
                           {rows, cols, keep, of, block_rows, block_cols, group_size}, check);
           }),
           "format"_a, "arrays"_a, "rows"_a, "cols"_a, "dtype"_a, py::kw_only(), "keep"_a = 0,
           "of"_a = 0, "block_rows"_a = 0, "block_cols"_a = 0, "group_size"_a = 0, "check"_a = true)
      .def_property_readonly("rows", [](const Matrix& a) { return a.view().rows; })
      .def_property_readonly("cols", [](const Matrix& a) { return a.view().cols; })
      .def_property_readonly("nnz", [](const Matrix& a) { return a.view().nnz; })
      .def_property_readonly("format", [](const Matrix& a) { return name_of(a.view().format); })
      .def_property_readonly("dtype", [](const Matrix& a) { return name_of(a.view().dtype); })
      .def("kernel", &Matrix::kernel, "m"_a, "x_dtype"_a)
      .def("dense_above", &Matrix::dense_above, "x_dtype"_a)
      .def("unpack", &Matrix::unpack)
      .def("unpack_keep", &Matrix::unpack_keep);
}

}  // namespace tamis::binding
