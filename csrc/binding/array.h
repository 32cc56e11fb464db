// NumPy buffers as plain pointers, without copies; names and Status as C++ and Python see them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "base/dtype.h"
#include "base/isa.h"
#include "base/status.h"
#include "format/format.h"
#include "format/matrix.h"

namespace tamis::binding {

namespace py = pybind11;

// Raises ValueError (invalid_argument, corrupt), TypeError (unsupported_dtype) or
// NotImplementedError (no_kernel) with the Status's sentence, or MemoryError (out_of_memory).
void raise_if_error(const Status& status);

// Names to values; ValueError lists what exists.
DType dtype_from(const char* function, const char* argument, std::string_view name);
Format format_from(const char* function, std::string_view name);
IsaBits isa_from(const char* function, const std::string& name);

// What an array argument must hold.
struct Element {
  const char* name;   // for messages, as NumPy calls it
  const char* kinds;  // accepted dtype.kind letters
  int64_t bytes;
};

inline constexpr Element kBool{"bool", "b", 1};
inline constexpr Element kUint8{"uint8", "u", 1};
inline constexpr Element kInt32{"int32", "i", 4};
inline constexpr Element kInt64{"int64", "i", 8};
inline constexpr Element kUint32{"uint32", "u", 4};
inline constexpr Element kWord{"int64", "iu", 8};  // bit pattern of u64
inline constexpr Element kFloat32{"float32", "f", 4};
inline constexpr Element kFloat16{"float16", "f", 2};

// NumPy has no bf16: its bit patterns travel as uint16 (or int16).
Element element_of(DType dtype);

// A borrowed array: valid while the Python object it came from lives.
struct TensorView {
  const void* data = nullptr;
  int64_t size = 0;  // elements
};

// Any contiguous array of the element; TypeError or ValueError says what is wrong with it.
TensorView contiguous_view(const char* function, const char* argument, const py::object& array,
                           Element element);

// A 2-d array whose rows are contiguous and do not overlap.
DenseView dense_view(const char* function, const char* argument, const py::object& array,
                     DType dtype);

// Uninitialized NumPy array.
py::array new_array(Element element, std::initializer_list<int64_t> shape);

}  // namespace tamis::binding
