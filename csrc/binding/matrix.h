// Matrix: the Python handle on a MatrixView; keeps the arrays it points into alive.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <string>

#include "binding/array.h"
#include "format/matrix.h"

namespace tamis::binding {

struct MatrixSpec {
  int64_t rows, cols;
  int32_t keep, of;
  int32_t block_rows, block_cols;
  int64_t group_size;
};

class Matrix {
 public:
  // Sizes are always checked; contents only with `check`.
  Matrix(const std::string& format, const py::dict& arrays, const std::string& dtype,
         const MatrixSpec& spec, bool check);

  const MatrixView& view() const { return view_; }
  // Name of the spmm kernel that dispatch would run for m tokens.
  std::string kernel(int64_t m, const std::string& x_dtype) const;
  // Tokens above which expanding the weight and multiplying densely is expected to be faster.
  int64_t dense_above(const std::string& x_dtype) const;
  py::array unpack() const;
  py::array unpack_keep() const;

 private:
  MatrixView view_;
  std::array<py::object, 5> arrays_;
};

void bind_matrix(py::module_& m);

}  // namespace tamis::binding
