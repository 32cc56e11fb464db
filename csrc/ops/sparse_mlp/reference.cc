// Reference of sparse_mlp: the definition in double.
#include <algorithm>
#include <cmath>

#include "base/elements.h"
#include "ops/sparse_mlp/sparse_mlp.h"

namespace tamis {
namespace {

double exact(Activation f, double v) {
  switch (f) {
    case Activation::none:
      return v;
    case Activation::relu:
      return v < 0 ? 0 : v;
    case Activation::gelu:
      return v * 0.5 * std::erfc(-v * std::sqrt(0.5));
    case Activation::gelu_tanh:
      return v / (1 + std::exp(-2 * std::sqrt(2 / std::acos(-1.0)) * (v + 0.044715 * v * v * v)));
    case Activation::silu:
      return v / (1 + std::exp(-v));
  }
  return v;
}

double dot(const SparseMlpArgs& a, const void* w, int64_t row, int64_t token) {
  double sum = 0;
  for (int64_t c = 0; c < a.k; ++c) {
    sum += static_cast<double>(load_element(a.dtype, w, row * a.k + c)) *
           load_element(a.dtype, a.x, token * a.x_stride + c);
  }
  return sum;
}

}  // namespace

Status sparse_mlp_reference(const SparseMlpArgs& a, double* y, double* margin) {
  std::fill(y, y + a.m * a.d, 0.0);
  for (int64_t t = 0; t < a.m; ++t) {
    for (int64_t j = 0; j < a.n; ++j) {
      const double act = exact(a.activation, dot(a, a.gate, j, t));
      if (margin) margin[t * a.n + j] = std::fabs(act) - a.threshold[j];
      if (std::fabs(act) < a.threshold[j]) continue;
      const double z = act * dot(a, a.up, j, t);
      for (int64_t c = 0; c < a.d; ++c) {
        y[t * a.d + c] += z * load_element(a.dtype, a.down, j * a.d + c);
      }
    }
  }
  return {};
}

}  // namespace tamis
