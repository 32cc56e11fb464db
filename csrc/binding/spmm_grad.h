// spmm_t and sddmm, on the processor and on a device.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_spmm_grad(pybind11::module_& m);

}  // namespace tamis::binding
