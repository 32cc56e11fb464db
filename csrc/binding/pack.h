// pack and import: dense NumPy weights to the arrays of a format.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_pack(pybind11::module_& m);

}  // namespace tamis::binding
