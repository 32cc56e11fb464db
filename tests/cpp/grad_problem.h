// One pair of gradients for the tests of spmm_grad on the processor and on the simulator: a random
// weight in guarded memory, tokens with NaN between their rows, and the comparison with the
// references.
#pragma once

#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/elements.h"
#include "ops/spmm_grad/spmm_grad.h"
#include "packing.h"

namespace tamis::test {

struct GradCase {
  Format format;
  DType dtype;
  int64_t m, n, k;
  double density;  // nm: 2:4 whatever it says
};
inline std::string to_string(const GradCase& c) {
  return std::string(name_of(c.format)) + " " + name_of(c.dtype) + " m " + std::to_string(c.m) +
         " n " + std::to_string(c.n) + " k " + std::to_string(c.k) + " density " +
         std::to_string(c.density);
}

class GradProblem {
 public:
  // align: strides and beginnings of rows on 16 bytes, as the CUDA kernels want them.
  GradProblem(const GradCase& c, uint64_t seed, bool align)
      : c_(c),
        random_(seed),
        n_stride_(c.n + (align ? 8 : 3)),
        k_stride_(c.k + (align ? 16 : 5)),
        dy_(make(c.m, c.n, n_stride_)),
        x_(make(c.m, c.k, k_stride_)),
        packed_(pack_weight()) {}

  SpmmTArgs spmm_t_args() {
    dx_ = std::make_unique<Guarded<uint8_t>>(bytes((c_.m - 1) * k_stride_ + c_.k));
    for (int64_t i = 0; i < (c_.m - 1) * k_stride_ + c_.k; ++i) {
      store_element(c_.dtype, kUntouched, dx_->data(), i);
    }
    return {.w = packed_.view,
            .dtype = c_.dtype,
            .m = c_.m,
            .dy = dy_->data(),
            .dy_stride = n_stride_,
            .dx = dx_->data(),
            .dx_stride = k_stride_};
  }
  SddmmArgs sddmm_args() {
    dw_ = std::make_unique<Guarded<uint8_t>>(bytes(packed_.view.nnz));
    return {.w = packed_.view,
            .dtype = c_.dtype,
            .m = c_.m,
            .dy = dy_->data(),
            .dy_stride = n_stride_,
            .x = x_->data(),
            .x_stride = k_stride_,
            .dw = dw_->data()};
  }

  // What is wrong with the result of args; empty if nothing.
  std::string compare(const SpmmTArgs& a) const {
    std::vector<double> wanted(static_cast<size_t>(c_.m * c_.k)), sizes(wanted.size());
    if (!spmm_t_reference(a, wanted.data()).ok()) return "no reference";
    const double most = 4.0 * static_cast<double>(c_.n);
    for (int64_t t = 0; t < c_.m; ++t) {
      for (int64_t i = 0; i < k_stride_ && (t + 1 < c_.m || i < c_.k); ++i) {
        const double got = load_element(c_.dtype, a.dx, t * k_stride_ + i);
        if (i >= c_.k) {
          if (got != kUntouched) return "wrote between the rows";
          continue;
        }
        const std::string wrong = differ(got, wanted[static_cast<size_t>(t * c_.k + i)], most);
        if (!wrong.empty()) {
          return "dx of token " + std::to_string(t) + ", column " + std::to_string(i) + wrong;
        }
      }
    }
    return {};
  }
  std::string compare(const SddmmArgs& a) const {
    std::vector<double> wanted(static_cast<size_t>(a.w.nnz));
    if (!sddmm_reference(a, wanted.data()).ok()) return "no reference";
    const double most = 4.0 * static_cast<double>(c_.m);
    for (int64_t i = 0; i < a.w.nnz; ++i) {
      const std::string wrong =
          differ(load_element(c_.dtype, a.dw, i), wanted[static_cast<size_t>(i)], most);
      if (!wrong.empty()) return "dw of value " + std::to_string(i) + wrong;
    }
    return {};
  }

 private:
  static constexpr float kUntouched = 77.0f;

  size_t bytes(int64_t count) const { return static_cast<size_t>(count * size_of(c_.dtype)); }

  std::string differ(double got, double wanted, double most) const {
    const double unit = c_.dtype == DType::f32   ? 0x1p-24
                        : c_.dtype == DType::f16 ? 0x1p-11
                                                 : 0x1p-8;
    if (std::fabs(got - wanted) <= 0x1p-23 * most + unit * std::fabs(wanted)) return {};
    return ": got " + std::to_string(got) + ", wanted " + std::to_string(wanted);
  }

  std::unique_ptr<Guarded<uint8_t>> make(int64_t rows, int64_t width, int64_t stride) {
    const int64_t count = (rows - 1) * stride + width;
    auto out = std::make_unique<Guarded<uint8_t>>(bytes(count));
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) {
      const float v =
          i % stride < width ? normal(random_) : std::numeric_limits<float>::quiet_NaN();
      store_element(c_.dtype, v, out->data(), i);
    }
    return out;
  }

  Packed pack_weight() {
    weight_ = make(c_.n, c_.k, c_.k);
    keep_.resize(static_cast<size_t>(c_.n * c_.k));
    std::bernoulli_distribution kept(c_.density);
    for (uint8_t& k : keep_) k = kept(random_);
    PackSpec spec{.format = c_.format, .dtype = c_.dtype};
    if (c_.format == Format::nm) {
      spec.keep = 2;
      spec.of = 4;
      for (size_t i = 0; i < keep_.size(); i += 4) {
        const uint64_t first = random_() % 4;
        for (uint64_t j = 0; j < 4; ++j) keep_[i + j] = j == first || j == (first + 1) % 4;
      }
    }
    const DenseView w{.data = weight_->data(),
                      .dtype = c_.dtype,
                      .rows = c_.n,
                      .cols = c_.k,
                      .stride = c_.k,
                      .keep = keep_.data()};
    Packed packed;
    if (!pack_guarded(w, spec, &packed).ok()) std::abort();
    return packed;
  }

  GradCase c_;
  std::mt19937_64 random_;
  int64_t n_stride_, k_stride_;
  std::unique_ptr<Guarded<uint8_t>> dy_, x_, dx_, dw_, weight_;
  std::vector<uint8_t> keep_;
  Packed packed_;
};

}  // namespace tamis::test
