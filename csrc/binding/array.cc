// Checks on the way from Python objects to pointers.
#include "binding/array.h"

#include <cstdint>
#include <new>
#include <string>

#include "base/dtype.h"
#include "base/status.h"
#include "format/format.h"
#include "format/matrix.h"

namespace tamis::binding {
namespace {

std::string shape_text(const py::array& a) {
  return py::str(a.attr("shape")).cast<std::string>();
}

[[noreturn]] void raise_type(const char* function, const char* argument, const std::string& got,
                             const std::string& wanted) {
  throw py::type_error(std::string(function) + ": " + argument + ": got " + got + ", wanted " +
                       wanted);
}

[[noreturn]] void raise_value(const char* function, const char* argument, const std::string& got,
                              const std::string& wanted) {
  throw py::value_error(std::string(function) + ": " + argument + ": got " + got + ", wanted " +
                        wanted);
}

// The object as an array of the element in this machine's byte order.
py::array typed_array(const char* function, const char* argument, const py::object& object,
                      Element element) {
  if (!py::isinstance<py::array>(object)) {
    raise_type(function, argument, py::type::of(object).attr("__name__").cast<std::string>(),
               std::string("a numpy array of ") + element.name);
  }
  auto array = py::reinterpret_borrow<py::array>(object);
  const py::dtype dtype = array.dtype();
  const bool kind = std::string_view(element.kinds).find(dtype.kind()) != std::string_view::npos;
  if (!kind || dtype.itemsize() != element.bytes || dtype.byteorder() == '>') {
    raise_type(function, argument, "dtype " + py::str(dtype).cast<std::string>(), element.name);
  }
  if (reinterpret_cast<uintptr_t>(array.data()) % static_cast<uintptr_t>(element.bytes) != 0) {
    raise_value(function, argument, "memory that is not aligned",
                "an address that is a multiple of " + std::to_string(element.bytes) + " bytes");
  }
  return array;
}

}  // namespace

void raise_if_error(const Status& status) {
  switch (status.code) {
    case Code::ok:
      return;
    case Code::unsupported_dtype:
      throw py::type_error(status.text);
    case Code::no_kernel:
      PyErr_SetString(PyExc_NotImplementedError, status.text);
      throw py::error_already_set();
    case Code::out_of_memory:
      throw std::bad_alloc();
    case Code::invalid_argument:
    case Code::corrupt:
      break;
  }
  throw py::value_error(status.text);
}

DType dtype_from(const char* function, const char* argument, std::string_view name) {
  for (const DType t : {DType::f32, DType::f16, DType::bf16, DType::i8, DType::u4, DType::u8}) {
    if (name == name_of(t)) return t;
  }
  raise_value(function, argument, "'" + std::string(name) + "'", "f32, f16, bf16, i8, u4 or u8");
}

Format format_from(const char* function, std::string_view name) {
#define TAMIS_FORMAT(format) \
  if (name == #format) return Format::format;
#include "format/formats.def"
#undef TAMIS_FORMAT
  std::string known;
#define TAMIS_FORMAT(format) known += std::string(known.empty() ? "" : ", ") + #format;
#include "format/formats.def"
#undef TAMIS_FORMAT
  raise_value(function, "format", "'" + std::string(name) + "'", "one of " + known);
}

IsaBits isa_from(const char* function, const std::string& name) {
  IsaBits bits = isa::kScalar;
  if (isa_from_name(name.c_str(), &bits)) return bits;
  raise_value(function, "isa", "'" + name + "'", isa_levels());
}

Element element_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return kFloat32;
    case DType::f16:
      return {"float16", "f", 2};
    case DType::bf16:
      return {"uint16 (bf16 bit patterns)", "iu", 2};
    case DType::u4:
    case DType::u8:
      return kUint8;
    case DType::i8:
      break;
  }
  return {"int8", "i", 1};
}

TensorView contiguous_view(const char* function, const char* argument, const py::object& object,
                           Element element) {
  const py::array array = typed_array(function, argument, object, element);
  if ((array.flags() & py::array::c_style) == 0) {
    raise_value(function, argument, "a strided array of shape " + shape_text(array),
                "a contiguous one; call numpy.ascontiguousarray");
  }
  return {.data = array.data(), .size = array.size()};
}

DenseView dense_view(const char* function, const char* argument, const py::object& object,
                     DType dtype) {
  const py::array array = typed_array(function, argument, object, element_of(dtype));
  if (array.ndim() != 2) {
    raise_value(function, argument, "shape " + shape_text(array), "2 dimensions [rows, cols]");
  }
  DenseView view{
      .data = array.data(), .dtype = dtype, .rows = array.shape(0), .cols = array.shape(1)};
  view.stride = view.cols;
  if (array.size() == 0) return view;  // NumPy's strides of empty or single extents mean nothing
  const bool row_contiguous = view.cols == 1 || array.strides(1) == array.itemsize();
  const bool rows_apart = view.rows == 1 || (array.strides(0) % array.itemsize() == 0 &&
                                             array.strides(0) >= view.cols * array.itemsize());
  if (!row_contiguous || !rows_apart) {
    raise_value(function, argument,
                "strides " + py::str(array.attr("strides")).cast<std::string>() + " bytes",
                "contiguous rows; call numpy.ascontiguousarray");
  }
  if (view.rows > 1) view.stride = array.strides(0) / array.itemsize();
  return view;
}

py::array new_array(Element element, std::initializer_list<int64_t> shape) {
  const std::string_view kinds = element.kinds;
  const char kind = kinds == "iu" && element.bytes == 2 ? 'u' : kinds[0];
  const std::string code = (kind == 'b' ? "?" : kind + std::to_string(element.bytes));
  return py::array(py::dtype(code), py::array::ShapeContainer(shape.begin(), shape.end()));
}

}  // namespace tamis::binding
