// sparse_input and sparse_mlp on a device.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_cuda_activation(pybind11::module_& m);

}  // namespace tamis::binding
