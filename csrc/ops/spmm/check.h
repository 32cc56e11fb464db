// The argument check that spmm and its reference share.
#pragma once

#include "ops/spmm/spmm.h"

namespace tamis {

// Shapes, strides, dtypes, null pointers and what a view of this format must carry; not the
// contents of the arrays (that is format check, run once when they come from outside).
Status check_spmm(const SpmmArgs& args);

}  // namespace tamis
