// sparse_input and sparse_mlp: products of which some inputs or neurons count, and their arguments
// as Python gives them: sizes and raw addresses.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "binding/address.h"
#include "ops/sparse_input/sparse_input.h"
#include "ops/sparse_mlp/sparse_mlp.h"

namespace tamis::binding {

using InputShape = std::tuple<int64_t, int64_t, int64_t>;         // m, n, k
using MlpShape = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // m, k, n, d
using MlpWeights = std::tuple<uintptr_t, uintptr_t, uintptr_t>;   // gate, up, down

SparseInputArgs input_args(int dtype, const InputShape& shape, uintptr_t x, int64_t x_stride,
                           uintptr_t w, uintptr_t threshold, uintptr_t bias, uintptr_t y,
                           int64_t y_stride);
// ValueError unless `activation` is one.
SparseMlpArgs mlp_args(int dtype, const MlpShape& shape, uintptr_t x, int64_t x_stride,
                       const MlpWeights& weights, uintptr_t threshold, int activation, uintptr_t y,
                       int64_t y_stride);

void bind_activation(pybind11::module_& m);

}  // namespace tamis::binding
