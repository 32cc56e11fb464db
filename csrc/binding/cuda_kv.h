// Binds the KV cache's operators on a device.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_cuda_kv(pybind11::module_& m);

}  // namespace tamis::binding
