// The bitmap kernels for 32-bit weights on the simulator, which multiply and write out bitmap and
// nm as stored: formats, tails of every extent, densities, guard pages round every array.
#include "ops/spmm/bitmap_f32.cuh"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/with_constant.h"
#include "cuda_sim/devices.h"
#include "format/format.h"
#include "packing.h"

namespace tamis::test {
namespace {

struct Problem {
  int64_t n, k, m;
  double density = 0.5;
  Format format = Format::bitmap;
  bool integers = false, bias = false;
  int64_t x_padding = 0, y_padding = 0;
};

std::string label(const Problem& p) {
  return std::string(name_of(p.format)) + " " + std::to_string(p.n) + " x " + std::to_string(p.k) +
         ", " + std::to_string(p.m) + " tokens, density " + std::to_string(p.density) +
         (p.integers ? ", integers" : "");
}

class Case {
 public:
  Case(const Problem& problem, uint64_t seed)
      : p_(problem),
        random_(seed),
        dense_(static_cast<size_t>(p_.n * p_.k)),
        x_(static_cast<size_t>((p_.m - 1) * x_stride() + p_.k)),
        bias_(static_cast<size_t>(p_.n)),
        y_(static_cast<size_t>((p_.m - 1) * y_stride() + p_.n)) {
    PackSpec spec{.format = p_.format, .dtype = DType::f32, .keep = 2, .of = 4};
    std::vector<uint8_t> keep(dense_.size());
    std::uniform_real_distribution<double> uniform;
    for (size_t i = 0; i < keep.size(); ++i) {
      keep[i] = p_.format == Format::nm ? (i + i / 4 % 2) % 2 : uniform(random_) < p_.density;
      dense_[i] = keep[i] != 0 ? number() : 0.0f;
    }
    DenseView w{.data = dense_.data(), .dtype = DType::f32, .rows = p_.n, .cols = p_.k};
    w.stride = p_.k;
    w.keep = keep.data();
    EXPECT_TRUE(pack_guarded(w, spec, &packed_).ok());
    std::fill(x_.span().begin(), x_.span().end(), kNaN);
    for (int64_t t = 0; t < p_.m; ++t) {
      for (int64_t c = 0; c < p_.k; ++c) x_[static_cast<size_t>(t * x_stride() + c)] = number();
    }
    for (float& b : bias_.span()) b = number();
  }

  SpmmCudaArgs args() {
    const MatrixView& w = packed_.view;
    return {.w = {.format = PackedFormat::bitmap,
                  .rows = p_.n,
                  .cols = p_.k,
                  .dtype = DType::f32,
                  .records = w.values,
                  .mask = w.mask,
                  .row_offsets = p_.format == Format::nm ? nullptr : w.row_offsets,
                  .row_values = p_.format == Format::nm ? p_.k / 2 : 0,
                  .record_bytes = 4 * w.nnz},
            .m = p_.m,
            .x = x_.data(),
            .x_stride = x_stride(),
            .bias = p_.bias ? bias_.data() : nullptr,
            .y = y_.data(),
            .y_stride = y_stride()};
  }

  // What is wrong; empty if nothing.
  std::string multiply(int32_t warps, uint64_t seed, int64_t blocks = 3,
                       const sim::Faults& faults = {}) {
    std::fill(y_.span().begin(), y_.span().end(), kNaN);
    const SpmmCudaPlan plan = lay_out_bitmap_f32(args().w, p_.m, warps, blocks);
    const BitmapF32Params p = bitmap_f32_params(args(), plan);
    const sim::Launch launch{.grid = {static_cast<uint32_t>(plan.blocks_n)},
                             .block = {static_cast<uint32_t>(32 * plan.warps_k)},
                             .shared_bytes = static_cast<size_t>(plan.shared_bytes),
                             .seed = seed,
                             .faults = faults};
    const std::string wrong = with_constant<1, 2, 4, 8, 16>(
        plan.tokens, [&]<int kTokens>(std::integral_constant<int, kTokens>) {
          return p.pairs ? sim::launch(launch,
                                       [&] { spmm_bitmap_f32<BitmapF32Config<kTokens, true>>(p); })
                         : sim::launch(launch, [&] {
                             spmm_bitmap_f32<BitmapF32Config<kTokens, false>>(p);
                           });
        });
    return wrong.empty() ? compare() : wrong;
  }

  std::string write_out(uint64_t seed) {
    const int64_t stride = p_.k + p_.y_padding;
    Guarded<float> out(static_cast<size_t>((p_.n - 1) * stride + p_.k));
    std::fill(out.span().begin(), out.span().end(), kNaN);
    const SpmmCudaPlan plan = lay_out_bitmap_f32(args().w, 1, 8, 3);
    const BitmapF32Params p = expand_bitmap_f32_params(args().w, plan, out.data(), stride);
    const sim::Launch launch{.grid = {static_cast<uint32_t>(plan.blocks_n)},
                             .block = {static_cast<uint32_t>(32 * plan.warps_k)},
                             .shared_bytes = static_cast<size_t>(plan.shared_bytes),
                             .seed = seed};
    const std::string wrong = sim::launch(launch, [&] { expand_bitmap_f32(p); });
    if (!wrong.empty()) return wrong;
    for (int64_t r = 0; r < p_.n; ++r) {
      for (int64_t c = 0; c < (r + 1 < p_.n ? stride : p_.k); ++c) {
        const float got = out[static_cast<size_t>(r * stride + c)];
        const bool right =
            c < p_.k ? got == dense_[static_cast<size_t>(r * p_.k + c)] : std::isnan(got);
        if (!right) return "w[" + std::to_string(r) + ", " + std::to_string(c) + "] differs";
      }
    }
    return {};
  }

  std::vector<float> y() const { return {y_.data(), y_.data() + y_.size()}; }

 private:
  static constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

  int64_t x_stride() const { return p_.k + p_.x_padding; }
  int64_t y_stride() const { return p_.n + p_.y_padding; }
  float number() {
    if (p_.integers) return static_cast<float>(static_cast<int>(random_() % 4) + 1);
    return std::normal_distribution<float>()(random_);
  }

  std::string compare() {
    for (int64_t t = 0; t < p_.m; ++t) {
      for (int64_t r = 0; r < p_.n; ++r) {
        double wanted = p_.bias ? bias_[static_cast<size_t>(r)] : 0.0,
               magnitude = std::fabs(wanted);
        for (int64_t c = 0; c < p_.k; ++c) {
          const double product = double{dense_[static_cast<size_t>(r * p_.k + c)]} *
                                 x_[static_cast<size_t>(t * x_stride() + c)];
          wanted += product;
          magnitude += std::fabs(product);
        }
        const float got = y_[static_cast<size_t>(t * y_stride() + r)];
        const double allowed = p_.integers ? 0.0 : 0x1p-23 * 16 * magnitude;
        if (!(std::fabs(got - wanted) <= allowed)) {
          return "y[" + std::to_string(t) + ", " + std::to_string(r) +
                 "] = " + std::to_string(got) + ", wanted " + std::to_string(wanted);
        }
      }
      for (int64_t r = p_.n; r < y_stride() && t + 1 < p_.m; ++r) {
        if (!std::isnan(y_[static_cast<size_t>(t * y_stride() + r)])) return "padding was written";
      }
    }
    return {};
  }

  Problem p_;
  std::mt19937_64 random_;
  std::vector<float> dense_;
  Guarded<float> x_, bias_, y_;
  Packed packed_;
};

TEST(BitmapF32, ShapesAndDensities) {
  uint64_t seed = 900;
  for (const double density : {0.0, 0.1, 0.5, 1.0}) {
    for (const auto& [n, k] : {std::pair{4, 64}, {5, 65}, {1, 8}, {50, 200}, {7, 2113}}) {
      for (const int64_t m : {1, 2, 3}) {
        for (const bool integers : {false, true}) {
          Case c({.n = n,
                  .k = k,
                  .m = m,
                  .density = density,
                  .integers = integers,
                  .bias = integers,
                  .x_padding = m == 2   ? 2
                               : m == 3 ? 3
                                        : 0,
                  .y_padding = m == 3 ? 5 : 0},
                 ++seed);
          EXPECT_EQ(c.multiply(4, seed), "") << n << " x " << k << ", " << m << ", " << density;
        }
      }
    }
  }
}

TEST(BitmapF32, TokensAndWarps) {
  uint64_t seed = 1000;
  for (const Format format : {Format::bitmap, Format::nm}) {
    for (const int64_t m : {1, 2, 3, 4, 5, 8, 9, 16}) {
      for (const int32_t warps : {4, 5, 8}) {
        const Problem p{.n = 9, .k = 520, .m = m, .format = format, .bias = true};
        ++seed;
        EXPECT_EQ(Case(p, seed).multiply(warps, seed), "") << label(p) << ", " << warps;
      }
    }
  }
}

// More words than a block's warps have at a time, and as many words of a warp as it can have.
TEST(BitmapF32, LongRows) {
  uint64_t seed = 1100;
  for (const int64_t k : {4 * 2048, 10 * 2048 + 70}) {
    const Problem p{.n = 5, .k = k, .m = 2, .integers = true};
    Case c(p, ++seed);
    EXPECT_EQ(c.multiply(4, seed), "") << label(p);
    EXPECT_EQ(c.write_out(seed), "") << label(p);
  }
}

TEST(BitmapF32, WritesOut) {
  uint64_t seed = 1200;
  for (const Format format : {Format::bitmap, Format::nm}) {
    for (const double density : {0.0, 0.5, 1.0}) {
      for (const auto& [n, k] : {std::pair{4, 64}, {5, 68}, {1, 8}, {33, 2116}}) {
        for (const int64_t padding : {0, 2, 3}) {
          Problem p{.n = n, .k = k, .m = 1, .density = density, .format = format};
          p.y_padding = padding;
          ++seed;
          EXPECT_EQ(Case(p, seed).write_out(seed), "") << label(p);
        }
      }
    }
  }
}

TEST(BitmapF32, TwoRunsAgreeInEveryBit) {
  Case c({.n = 30, .k = 900, .m = 5}, 7);
  EXPECT_EQ(c.multiply(8, 1), "");
  const std::vector<float> first = c.y();
  EXPECT_EQ(c.multiply(8, 2), "");
  EXPECT_EQ(first, c.y());
}

// The last one: without the first, whose counts say where values lie, loads miss all memory.
TEST(BitmapF32, AMissingBarrierIsNoticed) {
  int wrong = 0;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    Case c({.n = 4, .k = 2000, .m = 2}, seed);
    wrong += !c.multiply(4, seed, 3, {.barrier = 2}).empty();
  }
  EXPECT_GT(wrong, 0);
}

TEST(PlanBitmapF32, FitsAndSharesEverything) {
  for (const auto& [n, k] : plan_shapes(1, 1)) {
    for (const int64_t m : {1, 2, 3, 8, 16}) {
      const PackedView w{.format = PackedFormat::bitmap, .rows = n, .cols = k, .dtype = DType::f32};
      for (const CudaDevice& device : {kA100, kH100}) {
        SpmmCudaPlan p;
        ASSERT_TRUE(plan_spmm_cuda(w, m, device, &p).ok());
        EXPECT_GE(p.tokens, m);
        EXPECT_GE(p.blocks_n, 1);
        EXPECT_GE(32 * p.warps_k,
                  bitmap_f32_rows(p.tokens) * p.tokens);  // a thread adds up each sum
        EXPECT_LE(p.warps_k, kBitmapF32Warps);
        EXPECT_LE(p.shared_bytes, 75 * 1024);  // of 16 tokens a block an SM
        EXPECT_EQ(p.workspace_bytes, 0);
      }
    }
  }
  const PackedView w{.format = PackedFormat::bitmap, .rows = 16, .cols = 64, .dtype = DType::f32};
  SpmmCudaPlan p;
  EXPECT_EQ(plan_spmm_cuda(w, 0, kH100, &p).code, Code::invalid_argument);
  EXPECT_EQ(plan_spmm_cuda(w, 17, kH100, &p).code, Code::invalid_argument);
  EXPECT_EQ(most_tokens_cuda(w, kH100), 16);
}

}  // namespace
}  // namespace tamis::test
