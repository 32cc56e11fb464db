// One call for what would be a few thousand dictionary lookups in Python, a fortieth of a token.
#include "binding/watch.h"

#include <algorithm>

#include "binding/array.h"

namespace tamis::binding {
namespace {

// Between two calls a token's weights have pushed all of this out of L2, and a look-up waits for
// three lines one after another: asked for ahead, they come together.
constexpr size_t kAhead = 32;

void fetch_dicts(const py::tuple& from, size_t begin, size_t end, size_t step) {
  for (size_t i = begin; i < end; i += step) __builtin_prefetch(PyTuple_GET_ITEM(from.ptr(), i));
}

void fetch_keys(const py::tuple& from, size_t begin, size_t end, size_t step) {
  for (size_t i = begin; i < end; i += step) {
    const auto* dict = reinterpret_cast<const PyDictObject*>(PyTuple_GET_ITEM(from.ptr(), i));
    const auto* keys = reinterpret_cast<const char*>(dict->ma_keys);
    __builtin_prefetch(keys);
    __builtin_prefetch(keys + 64);
  }
}

// The value of a dictionary's key; null if it is absent.
PyObject* value_of(PyObject* dict, PyObject* key) {
  PyObject* found = PyDict_GetItemWithError(dict, key);  // borrowed
  if (!found && PyErr_Occurred()) throw py::error_already_set();
  return found;
}

// An integer from a new reference, which it takes; the raw interface is twice as fast as
// pybind11's.
int64_t number(PyObject* found) {
  if (!found) throw py::error_already_set();
  const int64_t value = PyLong_AsLongLong(found);
  Py_DECREF(found);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// entries: dictionary, key, value in turns; the value is that very object, or `...` where the key
// must be absent. empty: dictionaries. tensors: tensor, version, address in turns; -1: any.
bool unchanged(const py::tuple& entries, const py::tuple& empty, const py::tuple& tensors) {
  const size_t count = entries.size() / 3 * 3;
  for (size_t begin = 0; begin < count; begin += 3 * kAhead) {
    const size_t end = std::min(begin + 3 * kAhead, count);
    fetch_dicts(entries, begin, end, 3);
    fetch_keys(entries, begin, end, 3);
    for (size_t i = begin; i < end; i += 3) {
      PyObject* wanted = PyTuple_GET_ITEM(entries.ptr(), i + 2);
      if (wanted == Py_Ellipsis) wanted = nullptr;
      PyObject* dict = PyTuple_GET_ITEM(entries.ptr(), i);
      if (value_of(dict, PyTuple_GET_ITEM(entries.ptr(), i + 1)) != wanted) return false;
    }
  }
  for (size_t begin = 0; begin < empty.size(); begin += kAhead) {
    const size_t end = std::min(begin + kAhead, empty.size());
    fetch_dicts(empty, begin, end, 1);
    for (size_t i = begin; i < end; ++i) {
      if (PyDict_Size(PyTuple_GET_ITEM(empty.ptr(), i)) != 0) return false;
    }
  }
  static PyObject* const version_name = PyUnicode_InternFromString("_version");
  static PyObject* const address_name = PyUnicode_InternFromString("data_ptr");
  for (size_t i = 0; i + 2 < tensors.size(); i += 3) {
    PyObject* tensor = PyTuple_GET_ITEM(tensors.ptr(), i);
    const int64_t version = PyLong_AsLongLong(PyTuple_GET_ITEM(tensors.ptr(), i + 1));
    const int64_t address = PyLong_AsLongLong(PyTuple_GET_ITEM(tensors.ptr(), i + 2));
    if (version != -1 && number(PyObject_GetAttr(tensor, version_name)) != version) return false;
    if (address != -1 && number(PyObject_CallMethodNoArgs(tensor, address_name)) != address) {
      return false;
    }
  }
  return true;
}

}  // namespace

void bind_watch(py::module_& m) {
  using namespace py::literals;
  m.def("unchanged", &unchanged, "entries"_a, "empty"_a, "tensors"_a);
}

}  // namespace tamis::binding
