// kv_page records, kv_quantize and sparse_attention.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_kv(pybind11::module_& m);

}  // namespace tamis::binding
