// decoder: a layer's two halves over raw addresses.
#pragma once

#include <pybind11/pybind11.h>

namespace tamis::binding {

void bind_decoder(pybind11::module_& m);

}  // namespace tamis::binding
