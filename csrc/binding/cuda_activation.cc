// sparse_input and sparse_mlp on a device, over raw addresses that torch gives as integers. Nothing
// here allocates, copies or waits.
#include "binding/cuda_activation.h"

#include <pybind11/stl.h>

#include <cstdint>

#include "binding/activation.h"
#include "binding/cuda.h"
#include "binding/cuda_abi.h"

namespace tamis::binding {
namespace {

// Both: 0 when launched; else the bytes of workspace that the call wants.
int64_t input(int32_t device, uintptr_t stream, int dtype, const InputShape& shape, uintptr_t x,
              int64_t x_stride, uintptr_t w, uintptr_t threshold, uintptr_t bias, uintptr_t y,
              int64_t y_stride, uintptr_t workspace, int64_t workspace_bytes) {
  const SparseInputArgs args =
      input_args(dtype, shape, x, x_stride, w, threshold, bias, y, y_stride);
  const CudaDevice& facts = cuda_device(device);
  int64_t wanted = 0;
  raise_if_error(cuda_library().sparse_input_workspace(args, facts, &wanted));
  if (wanted > workspace_bytes) return wanted;
  raise_if_error(cuda_library().sparse_input(args, address<void>(workspace), workspace_bytes, facts,
                                             address<void>(stream)));
  return 0;
}

int64_t mlp(int32_t device, uintptr_t stream, int dtype, const MlpShape& shape, uintptr_t x,
            int64_t x_stride, const MlpWeights& weights, uintptr_t threshold, int activation,
            uintptr_t y, int64_t y_stride, uintptr_t workspace, int64_t workspace_bytes) {
  const SparseMlpArgs args =
      mlp_args(dtype, shape, x, x_stride, weights, threshold, activation, y, y_stride);
  const CudaDevice& facts = cuda_device(device);
  int64_t wanted = 0;
  raise_if_error(cuda_library().sparse_mlp_workspace(args, facts, &wanted));
  if (wanted > workspace_bytes) return wanted;
  raise_if_error(cuda_library().sparse_mlp(args, address<void>(workspace), workspace_bytes, facts,
                                           address<void>(stream)));
  return 0;
}

}  // namespace

void bind_cuda_activation(py::module_& m) {
  using namespace py::literals;
  m.def("cuda_sparse_input", &input, "device"_a, "stream"_a, "dtype"_a, "shape"_a, "x_ptr"_a,
        "x_stride"_a, "w_ptr"_a, "threshold_ptr"_a, "bias_ptr"_a, "y_ptr"_a, "y_stride"_a,
        "workspace_ptr"_a, "workspace_bytes"_a);
  m.def("cuda_sparse_mlp", &mlp, "device"_a, "stream"_a, "dtype"_a, "shape"_a, "x_ptr"_a,
        "x_stride"_a, "weight_ptrs"_a, "threshold_ptr"_a, "activation"_a, "y_ptr"_a, "y_stride"_a,
        "workspace_ptr"_a, "workspace_bytes"_a);
}

}  // namespace tamis::binding
