// decoder over raw addresses; weights come as (Matrix, address of the bias) pairs.
#include "binding/decoder.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "binding/address.h"
#include "binding/matrix.h"
#include "ops/decoder/decoder.h"

namespace tamis::binding {
namespace {

DecoderLinear linear(const Matrix& w, uintptr_t bias) {
  return {.w = w.view(), .bias = address<const void>(bias)};
}

using Biases3 = std::array<uintptr_t, 3>;
using Biases4 = std::array<uintptr_t, 4>;
using ArrayStrides = std::array<int64_t, 3>;

void inputs(const Matrix& q, const Matrix& k, const Matrix& v, Biases3 biases, int dtype, int64_t m,
            int64_t head_dim, uintptr_t x, uintptr_t norm, float eps, uintptr_t cos, uintptr_t sin,
            int64_t positions, uintptr_t queries, uintptr_t keys, uintptr_t values,
            uintptr_t workspace) {
  const DecoderInputs args{.dtype = float_dtype("decoder", dtype),
                           .m = m,
                           .head_dim = head_dim,
                           .x = address<const void>(x),
                           .norm = {.weight = address<const void>(norm), .eps = eps},
                           .q = linear(q, biases[0]),
                           .k = linear(k, biases[1]),
                           .v = linear(v, biases[2]),
                           .cos = address<const void>(cos),
                           .sin = address<const void>(sin),
                           .positions = positions,
                           .queries = address<void>(queries),
                           .keys = address<void>(keys),
                           .values = address<void>(values),
                           .workspace = address<void>(workspace)};
  run(&decoder_inputs, args);
}

void outputs(const Matrix& o, const Matrix& gate, const Matrix& up, const Matrix& down,
             Biases4 biases, int dtype, int64_t m, int64_t head_dim, int64_t kv_heads,
             int64_t tokens, uintptr_t x, uintptr_t queries, uintptr_t keys,
             ArrayStrides key_strides, uintptr_t values, ArrayStrides value_strides, float scale,
             uintptr_t norm, float eps, uintptr_t y, uintptr_t workspace) {
  DecoderOutputs args{.dtype = float_dtype("decoder", dtype),
                      .m = m,
                      .head_dim = head_dim,
                      .heads = o.view().cols / (head_dim > 0 ? head_dim : 1),
                      .kv_heads = kv_heads,
                      .tokens = tokens,
                      .x = address<const void>(x),
                      .queries = address<const void>(queries),
                      .keys = address<const void>(keys),
                      .values = address<const void>(values),
                      .scale = scale,
                      .o = linear(o, biases[0]),
                      .norm = {.weight = address<const void>(norm), .eps = eps},
                      .gate = linear(gate, biases[1]),
                      .up = linear(up, biases[2]),
                      .down = linear(down, biases[3]),
                      .y = address<void>(y),
                      .workspace = address<void>(workspace)};
  for (size_t i = 0; i < 3; ++i) {
    args.key_strides[i] = key_strides[i];
    args.value_strides[i] = value_strides[i];
  }
  run(&decoder_outputs, args);
}

}  // namespace

void bind_decoder(py::module_& m) {
  using namespace py::literals;
  m.def("decoder_inputs", &inputs, "q"_a, "k"_a, "v"_a, "bias_ptrs"_a, "dtype"_a, "m"_a,
        "head_dim"_a, "x_ptr"_a, "norm_ptr"_a, "eps"_a, "cos_ptr"_a, "sin_ptr"_a, "positions"_a,
        "queries_ptr"_a, "keys_ptr"_a, "values_ptr"_a, "workspace_ptr"_a);
  m.def("decoder_outputs", &outputs, "o"_a, "gate"_a, "up"_a, "down"_a, "bias_ptrs"_a, "dtype"_a,
        "m"_a, "head_dim"_a, "kv_heads"_a, "tokens"_a, "x_ptr"_a, "queries_ptr"_a, "keys_ptr"_a,
        "key_strides"_a, "values_ptr"_a, "value_strides"_a, "scale"_a, "norm_ptr"_a, "eps"_a,
        "y_ptr"_a, "workspace_ptr"_a);
}

}  // namespace tamis::binding
