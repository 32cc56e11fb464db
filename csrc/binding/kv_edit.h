// kv_gather and kv_merge.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_kv_edit(pybind11::module_& m);

}  // namespace tamis::binding
