// spmm over raw addresses, so that a call costs little beside the kernel.
#include "binding/spmm.h"

#include <cstdint>
#include <string>

#include "base/dtype.h"
#include "base/status.h"
#include "binding/array.h"
#include "binding/kernel_row.h"
#include "binding/matrix.h"
#include "ops/spmm/spmm.h"

namespace tamis::binding {
namespace {

const void* address(uintptr_t p) {
  return reinterpret_cast<const void*>(p);
}

SpmmArgs arguments(const Matrix& w, uintptr_t x, int x_dtype, int64_t m, int64_t x_stride,
                   uintptr_t bias, uintptr_t y, int64_t y_stride) {
  if (x_dtype < 0 || x_dtype > static_cast<int>(DType::bf16)) {
    throw py::type_error("spmm: x_dtype: got " + std::to_string(x_dtype) +
                         ", wanted 0 (f32), 1 (f16) or 2 (bf16)");
  }
  return {.w = w.view(),
          .x_dtype = static_cast<DType>(x_dtype),
          .m = m,
          .x = address(x),
          .x_stride = x_stride,
          .bias = address(bias),
          .y = reinterpret_cast<void*>(y),
          .y_stride = y_stride};
}

void run(const SpmmArgs& args) {
  Status status;
  {
    const py::gil_scoped_release release;
    status = spmm(args);
  }
  raise_if_error(status);
}

void product(const Matrix& w, uintptr_t x, int x_dtype, int64_t m, int64_t x_stride, uintptr_t bias,
             uintptr_t y, int64_t y_stride) {
  run(arguments(w, x, x_dtype, m, x_stride, bias, y, y_stride));
}

void product_activated(const Matrix& w, uintptr_t x, int x_dtype, int64_t m, int64_t x_stride,
                       uintptr_t bias, uintptr_t y, int64_t y_stride, int activation,
                       uintptr_t multiplier, int64_t multiplier_stride) {
  if (activation < 0 || activation > static_cast<int>(Activation::silu)) {
    throw py::value_error("spmm: activation: got " + std::to_string(activation) +
                          ", wanted 0 (none), 1 (relu), 2 (gelu), 3 (gelu_tanh) or 4 (silu)");
  }
  SpmmArgs args = arguments(w, x, x_dtype, m, x_stride, bias, y, y_stride);
  args.activation = static_cast<Activation>(activation);
  args.multiplier = address(multiplier);
  args.multiplier_stride = multiplier_stride;
  run(args);
}

py::list kernel_rows() {
  py::list rows;
  for (const SpmmRow& row : spmm_kernels()) {
    py::dict entry = dict_of({row.name,
                              "spmm",
                              name_of(row.format),
                              name_of(row.w_dtype),
                              name_of(row.x_dtype),
                              {},
                              row.tile_m,
                              row.tile_n,
                              {}},
                             row.isa);
    entry["from_m"] = row.from_m;
    rows.append(entry);
  }
  return rows;
}

std::string choose(const std::string& format, const std::string& w_dtype,
                   const std::string& x_dtype, int64_t m, int64_t n, int64_t k, int64_t nnz,
                   const std::string& isa) {
  const SpmmDesc desc{.format = format_from("choose", format),
                      .w_dtype = dtype_from("choose", "w_dtype", w_dtype),
                      .x_dtype = dtype_from("choose", "x_dtype", x_dtype),
                      .m = m,
                      .n = n,
                      .k = k,
                      .nnz = nnz};
  const SpmmRow* row = choose_spmm(desc, isa_from("choose", isa));
  if (row == nullptr) {
    raise_if_error(error(Code::no_kernel,
                         "choose: no %s kernel for %s takes %s weights and %s activations",
                         format.c_str(), isa.c_str(), w_dtype.c_str(), x_dtype.c_str()));
  }
  return row->name;
}

}  // namespace

void bind_spmm(py::module_& m) {
  using namespace py::literals;
  m.def("spmm", &product, "matrix"_a, "x_ptr"_a, "x_dtype"_a, "m"_a, "x_stride"_a, "bias_ptr"_a,
        "y_ptr"_a, "y_stride"_a);
  m.def("spmm_activated", &product_activated, "matrix"_a, "x_ptr"_a, "x_dtype"_a, "m"_a,
        "x_stride"_a, "bias_ptr"_a, "y_ptr"_a, "y_stride"_a, "activation"_a, "multiplier_ptr"_a,
        "multiplier_stride"_a);
  m.def("kernels", &kernel_rows);
  m.def("choose", &choose, "format"_a, "w_dtype"_a, "x_dtype"_a, "m"_a, "n"_a, "k"_a, "nnz"_a,
        "isa"_a);
}

}  // namespace tamis::binding
