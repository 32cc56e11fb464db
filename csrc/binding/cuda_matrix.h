// Binds what packs weights for CUDA and multiplies by them.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_cuda_matrix(pybind11::module_& m);

}  // namespace tamis::binding
