// kv_estimate, kv_mass, kv_select and kv_label records.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_kv_select(pybind11::module_& m);

}  // namespace tamis::binding
