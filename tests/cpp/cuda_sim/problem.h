// A random product, its weights packed for CUDA in guarded memory, its answer in double, and how to
// run a CUDA row on the simulator.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "base/with_constant.h"
#include "cuda_sim/data.h"
#include "cuda_sim/devices.h"
#include "format/groupq.h"
#include "ops/spmm/gap.cuh"
#include "ops/spmm/gap_expand.cuh"
#include "ops/spmm/m24_expand.cuh"
#include "ops/spmm/p24.cuh"
#include "ops/spmm/p24_expand.cuh"
#include "ops/spmm/sell4.cuh"
#include "ops/spmm/spmm.h"
#include "ops/spmm/t16.cuh"
#include "ops/spmm/t16_expand.cuh"
#include "packed_tiles.h"

namespace tamis::test {

struct Problem {
  int64_t n = 0, k = 0, m = 0;
  double sparsity = 0;
  DType dtype = DType::bf16;
  PackedFormat format = PackedFormat::t16;  // m24: columns in fours, 2 kept, above sparsity 0.8 one
  bool integers = false;                    // small ones, whose sums are exact
  bool bias = true;
  int32_t parts = 8;  // gap; of p24 panels
  int64_t x_padding = 0, y_padding = 0;
  uint64_t seed = 1;
};

// Owns every array of a call.
class Case {
 public:
  explicit Case(const Problem& problem) : p_(problem), random_(problem.seed) {
    if (p_.format == PackedFormat::m24) p_.k = ceil_div(p_.k, 4) * 4;
    if (of_codes()) p_.k = ceil_div(p_.k, 32) * 32;
    make_weights();
    make_vectors();
    pack_weights();
  }

  const Problem& problem() const { return p_; }
  const PackedView& t16() const { return tiles_->view; }  // of the problem's form
  SpmmCudaArgs args() {
    return {.w = tiles_->view,
            .m = p_.m,
            .x = x_->data(),
            .x_stride = p_.k + p_.x_padding,
            .bias = p_.bias ? bias_->data() : nullptr,
            .y = y_->data(),
            .y_stride = p_.n + p_.y_padding};
  }
  void scale_x(float factor) {
    for (int64_t t = 0; t < p_.m; ++t) {
      for (int64_t c = 0; c < p_.k; ++c) {
        uint16_t& x = (*x_)[t * (p_.k + p_.x_padding) + c];
        x = narrowed(factor * widened(x, p_.dtype), p_.dtype);
      }
    }
  }
  void clear_y() { std::fill(y_->span().begin(), y_->span().end(), kUnwritten); }
  const Guarded<uint16_t>& y() const { return *y_; }
  const std::vector<uint16_t>& dense() const { return dense_; }
  const std::vector<float>& exact() const { return exact_; }  // g4, sell4: before any rounding

  bool has_parts() const {
    return p_.format == PackedFormat::gap || p_.format == PackedFormat::p24;
  }
  bool of_codes() const {
    return p_.format == PackedFormat::g4 || p_.format == PackedFormat::sell4;
  }

  // What differs from the answer; empty if nothing.
  std::string compare() const {
    const double eps = p_.dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;  // half a unit in the last place
    for (int64_t t = 0; t < p_.m; ++t) {
      for (int64_t r = 0; r < p_.n; ++r) {
        double wanted = 0, magnitude = 0;
        for (int64_t c = 0; c < p_.k; ++c) {
          const bool codes = of_codes();
          const size_t at = static_cast<size_t>(r * p_.k + c);
          const double product = double{codes ? exact_[at] : widened(dense_[at], p_.dtype)} *
                                 widened((*x_)[t * (p_.k + p_.x_padding) + c], p_.dtype);
          wanted += product;
          magnitude += std::fabs(product);
        }
        if (p_.bias) wanted += widened((*bias_)[r], p_.dtype);
        const uint16_t got = (*y_)[t * (p_.n + p_.y_padding) + r];
        const uint16_t exact = narrowed(static_cast<float>(wanted), p_.dtype);
        const double off = std::fabs(widened(got, p_.dtype) - wanted);
        // Weights of g4 are rounded on the way: once in f16, twice in bf16; sums of sell4 are f16
        // within a unit.
        const bool codes = of_codes();
        const double weights = codes ? 2 * eps : 0;
        const double allowed = eps * std::fabs(wanted) + (0x1p-23 * 32 + weights) * magnitude;
        if (p_.integers && !codes ? got != exact : !(off <= allowed)) {
          return "y[" + std::to_string(t) + ", " + std::to_string(r) +
                 "] = " + std::to_string(widened(got, p_.dtype)) + ", wanted " +
                 std::to_string(wanted);
        }
      }
      for (int64_t r = p_.n; r < p_.n + p_.y_padding && t + 1 < p_.m; ++r) {
        if ((*y_)[t * (p_.n + p_.y_padding) + r] != kUnwritten) return "padding of y was written";
      }
    }
    return {};
  }

 private:
  static constexpr uint16_t kUnwritten = 0x7fff;  // NaN in both

  uint16_t number() {
    if (p_.integers) {
      const auto small = static_cast<float>(static_cast<int>(random_() % 7) - 3);
      return narrowed(small == 0 ? 1.0f : small, p_.dtype);
    }
    return narrowed(std::normal_distribution<float>()(random_), p_.dtype);
  }

  void make_weights() {
    dense_.assign(p_.n * p_.k, 0);
    if (p_.format == PackedFormat::m24) {
      keep_.assign(dense_.size(), 0);
      for (size_t i = 0; i < dense_.size(); i += 4) {
        for (int kept = 0; kept < of_four();) {
          const size_t j = i + random_() % 4;
          if (keep_[j]) continue;
          keep_[j] = 1;
          ++kept;
          if (p_.sparsity < 1.0) dense_[j] = number();
        }
      }
      return;
    }
    std::uniform_real_distribution<double> uniform;
    for (uint16_t& w : dense_) {
      if (uniform(random_) >= p_.sparsity) w = number();
    }
  }

  void make_vectors() {
    const auto length = [&](int64_t width, int64_t padding) {
      return static_cast<size_t>((p_.m - 1) * (width + padding) + width);
    };
    x_ = std::make_unique<Guarded<uint16_t>>(length(p_.k, p_.x_padding));
    y_ = std::make_unique<Guarded<uint16_t>>(length(p_.n, p_.y_padding));
    bias_ = std::make_unique<Guarded<uint16_t>>(p_.n);
    std::fill(x_->span().begin(), x_->span().end(), uint16_t{0x7fff});
    for (int64_t t = 0; t < p_.m; ++t) {
      for (int64_t c = 0; c < p_.k; ++c) (*x_)[t * (p_.k + p_.x_padding) + c] = number();
    }
    for (uint16_t& b : bias_->span()) b = number();
    clear_y();
  }

  int of_four() const { return p_.sparsity > 0.8 ? 1 : 2; }

  PackSpec spec() const {
    if (of_codes()) {  // groups of 16 or 32 columns, by the seed
      return {
          .format = Format::groupq, .dtype = DType::u4, .group_size = p_.seed % 2 != 0 ? 16 : 32};
    }
    if (p_.format != PackedFormat::m24) return {.format = Format::bitmap, .dtype = p_.dtype};
    return {.format = Format::nm, .dtype = p_.dtype, .keep = of_four(), .of = 4};
  }

  void make_groups(int64_t size) {
    exact_.assign(dense_.size(), 0);
    std::uniform_real_distribution<double> uniform;
    for (size_t i = 0; i < exact_.size(); i += static_cast<size_t>(size)) {
      if (uniform(random_) < p_.sparsity) continue;
      for (size_t j = i; j < i + static_cast<size_t>(size); ++j) {
        exact_[j] = std::normal_distribution<float>()(random_);
      }
    }
  }

  void pack_weights() {
    DenseView w{
        .data = dense_.data(), .dtype = p_.dtype, .rows = p_.n, .cols = p_.k, .stride = p_.k};
    if (!keep_.empty()) w.keep = keep_.data();
    if (of_codes()) {
      make_groups(spec().group_size);
      w = {.data = exact_.data(), .rows = p_.n, .cols = p_.k, .stride = p_.k};
    }
    must(pack_guarded(w, spec(), &canonical_));
    if (of_codes()) groupq::unpack(canonical_.view, exact_.data(), p_.k);
    tiles_ = std::make_unique<PackedTiles>(p_.format, canonical_.view, has_parts() ? p_.parts : 0);
    tiles_->view.dtype = p_.dtype;
    if (p_.format == PackedFormat::gap) must(gap::check(tiles_->view));
    if (p_.format == PackedFormat::p24) must(p24::check(tiles_->view));
    if (p_.format == PackedFormat::r24) must(r24::check(tiles_->view));
    if (p_.format == PackedFormat::t16) must(t16::check(tiles_->view));
  }

  Problem p_;
  std::mt19937_64 random_;
  std::vector<uint16_t> dense_;
  std::vector<uint8_t> keep_;
  std::vector<float> exact_;
  std::unique_ptr<Guarded<uint16_t>> x_, y_, bias_;
  Packed canonical_;
  std::unique_ptr<PackedTiles> tiles_;
};

// What a failure says of its problem.
inline std::string label(const Problem& p) {
  return "n " + std::to_string(p.n) + ", k " + std::to_string(p.k) + ", m " + std::to_string(p.m) +
         ", sparsity " + std::to_string(p.sparsity) + ", seed " + std::to_string(p.seed);
}

// One line of kernels_cuda.def on the simulator: the launch with its grid, threads and shared
// memory. m24 by warpgroups is in m24_wgmma.cc.
struct SimRow {
  const char* name;
  PackedFormat format;
  DType dtype;
  std::string (*run)(sim::Launch, const SpmmCudaArgs&, const SpmmCudaPlan&);
};

const std::vector<SimRow>& sim_rows();  // in sim_rows.cc, which compiles them once

// Those rows whose format `wanted` names.
template <class Wanted>
std::vector<SimRow> sim_rows_of(const Wanted& wanted) {
  std::vector<SimRow> rows = sim_rows();
  std::erase_if(rows, [&](const SimRow& row) { return !wanted(row.format); });
  return rows;
}
inline std::vector<SimRow> tile_rows() {
  return sim_rows_of([](PackedFormat f) {
    return f != PackedFormat::gap && f != PackedFormat::p24 && f != PackedFormat::sell4;
  });
}
inline std::vector<SimRow> gap_rows() {
  return sim_rows_of([](PackedFormat f) { return f == PackedFormat::gap; });
}

inline std::vector<SimRow> p24_rows() {
  return sim_rows_of([](PackedFormat f) { return f == PackedFormat::p24; });
}
inline std::vector<SimRow> sell4_rows() {
  return sim_rows_of([](PackedFormat f) { return f == PackedFormat::sell4; });
}

// What lies in a matrix before anything is written.
inline constexpr uint16_t kNotWritten = 0x7fff;

// Whether `out` is the case's dense weights, bit for bit, and untouched between rows.
inline void expect_dense(const Case& c, std::span<const uint16_t> out, int64_t stride) {
  const int64_t n = c.problem().n, k = c.problem().k;
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t col = 0; col < (r + 1 < n ? stride : k); ++col) {
      const auto at = static_cast<size_t>(r * stride + col);
      ASSERT_EQ(out[at], col < k ? c.dense()[static_cast<size_t>(r * k + col)] : kNotWritten)
          << r << ", " << col;
    }
  }
}

// Of a plan: tickets are zero, partial sums start as NaN.
inline std::vector<uint64_t> workspace_of(const SpmmCudaPlan& plan) {
  std::vector<uint64_t> workspace(static_cast<size_t>(ceil_div(plan.workspace_bytes, 8)), 0);
  std::fill(workspace.begin() + (workspace.empty() ? 0 : kWorkspaceTicketBytes / 8),
            workspace.end(), ~uint64_t{0});
  return workspace;
}

// Calls launch(args) with the plan's workspace; its complaint, or what is wrong with y or the
// tickets.
template <class Launch>
std::string run_case(Case& c, const SpmmCudaPlan& plan, const Launch& launch) {
  std::vector<uint64_t> workspace = workspace_of(plan);
  SpmmCudaArgs args = c.args();
  args.workspace = workspace.data();
  args.workspace_bytes = plan.workspace_bytes;
  c.clear_y();
  const std::string wrong = launch(args);
  if (!wrong.empty()) return wrong;
  for (size_t i = 0; i < workspace.size() && i < kWorkspaceTicketBytes / 8; ++i) {
    if (workspace[i] != 0) return "a ticket is not zero again";
  }
  return c.compare();
}

inline std::string run(const SimRow& row, Case& c, const SpmmCudaPlan& plan, uint64_t seed,
                       sim::Faults faults = {}) {
  const sim::Launch launch{
      .grid = {static_cast<uint32_t>(plan.blocks_n), static_cast<uint32_t>(plan.splits)},
      .shared_bytes = static_cast<size_t>(plan.shared_bytes),
      .seed = seed,
      .faults = faults};
  return run_case(c, plan, [&](const SpmmCudaArgs& args) { return row.run(launch, args, plan); });
}

// What differs between runs with two orders of threads; empty if nothing.
template <class Row>
std::string run_twice(const Row& row, Case& c, const SpmmCudaPlan& plan) {
  std::string wrong = run(row, c, plan, 1);
  const std::vector<uint16_t> first(c.y().data(), c.y().data() + c.y().size());
  if (wrong.empty()) wrong = run(row, c, plan, 2);
  const bool same = std::equal(first.begin(), first.end(), c.y().data());
  return !wrong.empty() || same ? wrong : "two runs differ";
}

// How many of `seeds` orders of threads notice bugs put in on purpose.
template <class Row>
int noticed(const Row& row, Case& c, const SpmmCudaPlan& plan, const sim::Faults& faults,
            uint64_t seeds = 8) {
  int count = 0;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    count += run(row, c, plan, seed, faults).empty() ? 0 : 1;
  }
  return count;
}

}  // namespace tamis::test
