// unchanged: whether what a plan was made of is still where it was.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_watch(pybind11::module_& m);

}  // namespace tamis::binding
