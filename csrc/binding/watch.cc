// One call for what would be a few thousand lookups in Python.
#include "binding/watch.h"

#include <algorithm>

#include "binding/array.h"

namespace tamis::binding {
namespace {

// Between two calls a token's weights have pushed all of this out of L2, and a look-up waits for
// three lines one after another: asked for ahead, they come together.
constexpr size_t kAhead = 32;

void fetch_keys(PyObject* dict) {
  const auto* keys = reinterpret_cast<const char*>(reinterpret_cast<PyDictObject*>(dict)->ma_keys);
  __builtin_prefetch(keys);
  __builtin_prefetch(keys + 64);
}

// Whether `look` says so of every `step` items of a tuple; the first of them is what is asked for.
template <class Look>
bool all_of(const py::tuple& from, size_t step, bool keys, const Look& look) {
  const size_t count = from.size() / step * step;
  PyObject* const* items = PySequence_Fast_ITEMS(from.ptr());
  for (size_t begin = 0; begin < count; begin += step * kAhead) {
    const size_t end = std::min(begin + step * kAhead, count);
    for (size_t i = begin; i < end; i += step) __builtin_prefetch(items[i]);
    for (size_t i = begin; keys && i < end; i += step) fetch_keys(items[i]);
    for (size_t i = begin; i < end; i += step) {
      if (!look(items + i)) return false;
    }
  }
  return true;
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

bool has_entry(PyObject* const* item) {  // dictionary, key, value or `...`
  PyObject* wanted = item[2] == Py_Ellipsis ? nullptr : item[2];
  return value_of(item[0], item[1]) == wanted;
}

bool is_empty(PyObject* const* item) {
  return PyDict_Size(item[0]) == 0;
}

bool has_type(PyObject* const* item) {  // object, class
  return reinterpret_cast<PyObject*>(Py_TYPE(item[0])) == item[1];
}

bool has_method(PyObject* const* item) {  // class, name, function
  const auto found = py::reinterpret_steal<py::object>(PyObject_GetAttr(item[0], item[1]));
  if (!found) throw py::error_already_set();
  return found.ptr() == item[2];
}

bool lies_there(PyObject* const* item) {  // tensor, version, address; -1: any
  static PyObject* const version_name = PyUnicode_InternFromString("_version");
  static PyObject* const address_name = PyUnicode_InternFromString("data_ptr");
  const int64_t version = PyLong_AsLongLong(item[1]), address = PyLong_AsLongLong(item[2]);
  if (version != -1 && number(PyObject_GetAttr(item[0], version_name)) != version) return false;
  return address == -1 || number(PyObject_CallMethodNoArgs(item[0], address_name)) == address;
}

bool unchanged(const py::tuple& entries, const py::tuple& empty, const py::tuple& tensors,
               const py::tuple& types, const py::tuple& methods) {
  return all_of(entries, 3, true, has_entry) && all_of(empty, 1, false, is_empty) &&
         all_of(types, 2, false, has_type) && all_of(methods, 3, false, has_method) &&
         all_of(tensors, 3, false, lies_there);
}

}  // namespace

void bind_watch(py::module_& m) {
  using namespace py::literals;
  m.def("unchanged", &unchanged, "entries"_a, "empty"_a, "tensors"_a, "types"_a, "methods"_a);
}

}  // namespace tamis::binding
