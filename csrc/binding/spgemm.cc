// spgemm over handles, which makes arrays, and over raw addresses of a device, which does not:
// there the caller counts, adds up and makes room.
#include "binding/spgemm.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>

#include "binding/address.h"
#include "binding/cuda.h"
#include "binding/kernel_row.h"
#include "binding/matrix.h"
#include "ops/spgemm/spgemm.h"

namespace tamis::binding {
namespace {

py::dict product(const Matrix& a, const Matrix& b) {
  const SpgemmArgs args{.a = a.view(), .b = b.view()};
  raise_if_error(check_spgemm(args));
  py::array row_offsets = new_array(kInt64, {args.a.rows + 1});
  auto* offsets = static_cast<int64_t*>(row_offsets.mutable_data());
  Status status;
  {
    const py::gil_scoped_release release;
    status = spgemm_count(args, offsets);
  }
  raise_if_error(status);
  py::array col_indices = new_array(kInt32, {offsets[args.a.rows]});
  py::array values = new_array(kFloat32, {offsets[args.a.rows]});
  {
    auto* columns = static_cast<int32_t*>(col_indices.mutable_data());
    auto* sums = static_cast<float*>(values.mutable_data());
    const py::gil_scoped_release release;
    status = spgemm_fill(args, offsets, columns, sums);
  }
  raise_if_error(status);
  py::dict c;
  c["values"] = values;
  c["row_offsets"] = row_offsets;
  c["col_indices"] = col_indices;
  return c;
}

// (rows, cols, nnz), addresses of values, row_offsets and col_indices.
using DeviceCsr =
    std::tuple<std::tuple<int64_t, int64_t, int64_t>, uintptr_t, uintptr_t, uintptr_t>;

MatrixView view_of(const DeviceCsr& m) {
  const auto& [shape, values, row_offsets, col_indices] = m;
  MatrixView view{.format = Format::csr,
                  .values = address<const void>(values),
                  .row_offsets = address<const int64_t>(row_offsets),
                  .col_indices = address<const int32_t>(col_indices)};
  std::tie(view.rows, view.cols, view.nnz) = shape;
  return view;
}

// Both: 0 when launched; else the bytes of workspace that the call wants.
int64_t cuda_count(int32_t device, uintptr_t stream, const DeviceCsr& a, const DeviceCsr& b,
                   uintptr_t counts, uintptr_t workspace, int64_t workspace_bytes) {
  const SpgemmArgs args{.a = view_of(a), .b = view_of(b)};
  const CudaDevice& facts = cuda_device(device);
  int64_t wanted = 0;
  raise_if_error(cuda_library().spgemm_workspace(args, facts, &wanted));
  if (wanted > workspace_bytes) return wanted;
  raise_if_error(cuda_library().spgemm_count(args, address<int64_t>(counts),
                                             address<void>(workspace), workspace_bytes, facts,
                                             address<void>(stream)));
  return 0;
}

int64_t cuda_fill(int32_t device, uintptr_t stream, const DeviceCsr& a, const DeviceCsr& b,
                  uintptr_t row_offsets, uintptr_t col_indices, uintptr_t values,
                  uintptr_t workspace, int64_t workspace_bytes) {
  const SpgemmArgs args{.a = view_of(a), .b = view_of(b)};
  const CudaDevice& facts = cuda_device(device);
  int64_t wanted = 0;
  raise_if_error(cuda_library().spgemm_workspace(args, facts, &wanted));
  if (wanted > workspace_bytes) return wanted;
  raise_if_error(cuda_library().spgemm_fill(args, address<const int64_t>(row_offsets),
                                            address<int32_t>(col_indices), address<float>(values),
                                            address<void>(workspace), workspace_bytes, facts,
                                            address<void>(stream)));
  return 0;
}

py::list kernel_rows() {
  py::list rows;
  for (const SpgemmRow& row : spgemm_kernels()) {
    rows.append(dict_of({row.name, "spgemm", "csr", "f32", "f32", {}, 1, 1, {}}, row.isa));
  }
  return rows;
}

}  // namespace

void bind_spgemm(py::module_& m) {
  using namespace py::literals;
  m.def("spgemm", &product, "a"_a, "b"_a);
  m.def("spgemm_kernels", &kernel_rows);
  m.def("cuda_spgemm_count", &cuda_count, "device"_a, "stream"_a, "a"_a, "b"_a, "counts_ptr"_a,
        "workspace_ptr"_a, "workspace_bytes"_a);
  m.def("cuda_spgemm_fill", &cuda_fill, "device"_a, "stream"_a, "a"_a, "b"_a, "row_offsets_ptr"_a,
        "col_indices_ptr"_a, "values_ptr"_a, "workspace_ptr"_a, "workspace_bytes"_a);
}

}  // namespace tamis::binding
