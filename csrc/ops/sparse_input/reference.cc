// Reference of sparse_input: the definition in double.
#include <cmath>

#include "base/elements.h"
#include "ops/sparse_input/sparse_input.h"

namespace tamis {

Status sparse_input_reference(const SparseInputArgs& a, double* y) {
  for (int64_t t = 0; t < a.m; ++t) {
    for (int64_t c = 0; c < a.n; ++c) {
      double sum = a.bias ? load_element(a.dtype, a.bias, c) : 0.0;
      for (int64_t k = 0; k < a.k; ++k) {
        const double x = load_element(a.dtype, a.x, t * a.x_stride + k);
        if (std::fabs(x) < a.threshold[k]) continue;
        sum += x * load_element(a.dtype, a.w, k * a.n + c);
      }
      y[t * a.n + c] = sum;
    }
  }
  return {};
}

}  // namespace tamis
