// conv2d and plane_mean, their kernel lists and their choice.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_conv2d(pybind11::module_& m);

}  // namespace tamis::binding
