// spgemm, on the processor and on a device.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_spgemm(pybind11::module_& m);

}  // namespace tamis::binding
