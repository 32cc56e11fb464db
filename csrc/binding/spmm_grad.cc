// spmm_t and sddmm over raw addresses, of this process or of a device as torch gives them. Nothing
// here allocates, copies or waits.
#include "binding/spmm_grad.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>

#include "binding/address.h"
#include "binding/cuda.h"
#include "binding/kernel_row.h"
#include "binding/matrix.h"
#include "ops/spmm_grad/spmm_grad.h"

namespace tamis::binding {
namespace {

// Rows of dy, x, dx have n or k elements each.
SpmmTArgs turned(const MatrixView& w, int dtype, int64_t m, uintptr_t dy, uintptr_t dx) {
  return {.w = w,
          .dtype = float_dtype("spmm_t", dtype),
          .m = m,
          .dy = address<const void>(dy),
          .dy_stride = w.rows,
          .dx = address<void>(dx),
          .dx_stride = w.cols};
}
SddmmArgs sampled(const MatrixView& w, int dtype, int64_t m, uintptr_t dy, uintptr_t x,
                  uintptr_t dw) {
  return {.w = w,
          .dtype = float_dtype("sddmm", dtype),
          .m = m,
          .dy = address<const void>(dy),
          .dy_stride = w.rows,
          .x = address<const void>(x),
          .x_stride = w.cols,
          .dw = address<void>(dw)};
}

// format, w dtype, (rows, cols, nnz), (keep, of), addresses of mask and row_offsets.
using DeviceMask = std::tuple<std::string, std::string, std::tuple<int64_t, int64_t, int64_t>,
                              std::tuple<int32_t, int32_t>, uintptr_t, uintptr_t>;

MatrixView view_of(const DeviceMask& mask, uintptr_t values) {
  const auto& [format, dtype, shape, groups, words, offsets] = mask;
  MatrixView w{.format = format_from("spmm_grad", format),
               .dtype = dtype_from("spmm_grad", "dtype", dtype),
               .values = address<const void>(values),
               .mask = address<const uint64_t>(words),
               .row_offsets = address<const int64_t>(offsets)};
  std::tie(w.rows, w.cols, w.nnz) = shape;
  std::tie(w.keep, w.of) = groups;
  if (!w.mask || (w.format == Format::nm ? w.of < 1 : !w.row_offsets)) {
    throw py::value_error(
        "spmm_grad: mask: got no mask words or row offsets, wanted a bitmap or nm "
        "weight");
  }
  return w;
}

void cuda_unpack(int32_t device, uintptr_t stream, const DeviceMask& mask, uintptr_t values,
                 uintptr_t dense) {
  cuda_device(device);  // checks the number
  raise_if_error(cuda_library().unpack_mask(view_of(mask, values), address<void>(dense),
                                            address<void>(stream)));
}

void cuda_gather(int32_t device, uintptr_t stream, const DeviceMask& mask, uintptr_t dense,
                 uintptr_t values) {
  cuda_device(device);
  raise_if_error(cuda_library().gather_mask(view_of(mask, 0), address<const void>(dense),
                                            address<void>(values), address<void>(stream)));
}

py::list kernel_rows() {
  py::list rows;
  for (const SpmmGradRow& row : spmm_grad_kernels()) {
    rows.append(
        dict_of({row.name, "spmm_grad", "bitmap", "f32", "f32", {}, kGradTokens, 1, {}}, row.isa));
  }
  return rows;
}

}  // namespace

void bind_spmm_grad(py::module_& m) {
  using namespace py::literals;
  m.def(
      "spmm_t",
      [](const Matrix& w, int dtype, int64_t tokens, uintptr_t dy, uintptr_t dx) {
        run(&spmm_t, turned(w.view(), dtype, tokens, dy, dx));
      },
      "matrix"_a, "dtype"_a, "m"_a, "dy_ptr"_a, "dx_ptr"_a);
  m.def(
      "sddmm",
      [](const Matrix& w, int dtype, int64_t tokens, uintptr_t dy, uintptr_t x, uintptr_t dw) {
        run(&sddmm, sampled(w.view(), dtype, tokens, dy, x, dw));
      },
      "matrix"_a, "dtype"_a, "m"_a, "dy_ptr"_a, "x_ptr"_a, "dw_ptr"_a);
  m.def("spmm_grad_kernels", &kernel_rows);
  m.def("cuda_unpack_mask", &cuda_unpack, "device"_a, "stream"_a, "mask"_a, "values_ptr"_a,
        "dense_ptr"_a);
  m.def("cuda_gather_mask", &cuda_gather, "device"_a, "stream"_a, "mask"_a, "dense_ptr"_a,
        "values_ptr"_a);
}

}  // namespace tamis::binding
