// What the operators that take raw addresses share: torch gives addresses, strides and dtypes as
// integers.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <utility>

#include "base/dtype.h"
#include "base/status.h"
#include "binding/array.h"

namespace tamis::binding {

using Strides = std::pair<int64_t, int64_t>;
using Strides3 = std::tuple<int64_t, int64_t, int64_t>;

template <class T>
T* address(uintptr_t p) {
  return reinterpret_cast<T*>(p);
}

// TypeError in the name of `op` unless `code` is 0 (f32), 1 (f16) or 2 (bf16).
inline DType float_dtype(const char* op, int code) {
  if (code < 0 || code > static_cast<int>(DType::bf16)) {
    throw py::type_error(std::string(op) + ": dtype: got " + std::to_string(code) +
                         ", wanted 0 (f32), 1 (f16) or 2 (bf16)");
  }
  return static_cast<DType>(code);
}

// Runs the operator without the GIL and raises what it reports.
template <class Args>
void run(Status (*op)(const Args&), const Args& args) {
  Status status;
  {
    const py::gil_scoped_release release;
    status = op(args);
  }
  raise_if_error(status);
}

}  // namespace tamis::binding
