// Binds the CUDA library: loading it, and weights on a device.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_cuda(pybind11::module_& m);

}  // namespace tamis::binding
