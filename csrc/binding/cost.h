// The machine's figures, predictions from them, and the timing that makes both.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "ops/spmm/spmm.h"

namespace tamis::binding {

void bind_cost(pybind11::module_& m);

// Tokens above which expanding is expected to be faster, by the machine's figures in use.
int64_t dense_above(const SpmmDesc& desc);

// ns of a call of the kernel that the choice takes, by the same figures; negative if unknown.
double predict(const SpmmDesc& desc, int threads);

}  // namespace tamis::binding
