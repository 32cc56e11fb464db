// sparse_input and sparse_mlp over raw addresses.
#include "binding/activation.h"

#include <pybind11/stl.h>

#include <span>
#include <string>

#include "base/dtype.h"
#include "binding/kernel_row.h"

namespace tamis::binding {
namespace {

// Both return how many inputs or activations counted.
int64_t input(int dtype, const InputShape& shape, uintptr_t x, int64_t x_stride, uintptr_t w,
              uintptr_t threshold, uintptr_t bias, uintptr_t y, int64_t y_stride) {
  int64_t kept = 0;
  SparseInputArgs args = input_args(dtype, shape, x, x_stride, w, threshold, bias, y, y_stride);
  args.kept = &kept;
  run(&sparse_input, args);
  return kept;
}

int64_t mlp(int dtype, const MlpShape& shape, uintptr_t x, int64_t x_stride, uintptr_t gate,
            uintptr_t up, uintptr_t down, uintptr_t threshold, int activation, uintptr_t y,
            int64_t y_stride) {
  int64_t kept = 0;
  SparseMlpArgs args =
      mlp_args(dtype, shape, x, x_stride, {gate, up, down}, threshold, activation, y, y_stride);
  args.kept = &kept;
  run(&sparse_mlp, args);
  return kept;
}

template <class Row>
void add_rows(std::span<const Row> rows, const char* op, py::list* out) {
  for (const Row& row : rows) {
    const char* dtype = name_of(row.dtype);
    out->append(dict_of({row.name, op, "dense", dtype, dtype, {}, kPassTokens, 1, {}}, row.isa));
  }
}

py::list kernel_rows() {
  py::list rows;
  add_rows(sparse_input_kernels(), "sparse_input", &rows);
  add_rows(sparse_mlp_kernels(), "sparse_mlp", &rows);
  return rows;
}

}  // namespace

SparseInputArgs input_args(int dtype, const InputShape& shape, uintptr_t x, int64_t x_stride,
                           uintptr_t w, uintptr_t threshold, uintptr_t bias, uintptr_t y,
                           int64_t y_stride) {
  SparseInputArgs args{.dtype = float_dtype("sparse_input", dtype),
                       .x = address<const void>(x),
                       .x_stride = x_stride,
                       .w = address<const void>(w),
                       .threshold = address<const float>(threshold),
                       .bias = address<const void>(bias),
                       .y = address<void>(y),
                       .y_stride = y_stride};
  std::tie(args.m, args.n, args.k) = shape;
  return args;
}

SparseMlpArgs mlp_args(int dtype, const MlpShape& shape, uintptr_t x, int64_t x_stride,
                       const MlpWeights& weights, uintptr_t threshold, int activation, uintptr_t y,
                       int64_t y_stride) {
  if (activation < 0 || activation > static_cast<int>(Activation::silu)) {
    throw py::value_error("sparse_mlp: activation: got " + std::to_string(activation) +
                          ", wanted 0 (none), 1 (relu), 2 (gelu), 3 (gelu_tanh) or 4 (silu)");
  }
  const auto [gate, up, down] = weights;
  SparseMlpArgs args{.dtype = float_dtype("sparse_mlp", dtype),
                     .x = address<const void>(x),
                     .x_stride = x_stride,
                     .gate = address<const void>(gate),
                     .up = address<const void>(up),
                     .down = address<const void>(down),
                     .threshold = address<const float>(threshold),
                     .activation = static_cast<Activation>(activation),
                     .y = address<void>(y),
                     .y_stride = y_stride};
  std::tie(args.m, args.k, args.n, args.d) = shape;
  return args;
}

void bind_activation(py::module_& m) {
  using namespace py::literals;
  m.attr("sparse_activation_tokens") = kPassTokens;
  m.def("sparse_input", &input, "dtype"_a, "shape"_a, "x_ptr"_a, "x_stride"_a, "w_ptr"_a,
        "threshold_ptr"_a, "bias_ptr"_a, "y_ptr"_a, "y_stride"_a);
  m.def("sparse_mlp", &mlp, "dtype"_a, "shape"_a, "x_ptr"_a, "x_stride"_a, "gate_ptr"_a, "up_ptr"_a,
        "down_ptr"_a, "threshold_ptr"_a, "activation"_a, "y_ptr"_a, "y_stride"_a);
  m.def("activation_kernels", &kernel_rows);
}

}  // namespace tamis::binding
