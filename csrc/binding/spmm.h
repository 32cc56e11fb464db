// spmm, its kernel list and its choice.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_spmm(pybind11::module_& m);

}  // namespace tamis::binding
