// sparse_input and sparse_mlp: products of which some inputs or neurons count.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_activation(pybind11::module_& m);

}  // namespace tamis::binding
