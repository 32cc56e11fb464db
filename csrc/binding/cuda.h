// Binds the CUDA library: loading it, and what it has.
#pragma once

#include <pybind11/pybind11.h>

#include "binding/cuda_abi.h"

namespace tamis::binding {

void bind_cuda(pybind11::module_& m);

// The loaded library, and facts of a device of it. Raise where there is none.
const CudaLibrary& cuda_library();
const CudaDevice& cuda_device(int32_t index);

}  // namespace tamis::binding
