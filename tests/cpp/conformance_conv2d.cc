// Every row of conv2d/kernels.def against the reference in double: kernels, strides, paddings and
// image sizes around each row's vectors; planes and pixels first; block heights; with guard pages
// after each array and NaN between rows and planes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "fewer.h"
#include "format/format.h"
#include "guarded.h"
#include "ops/conv2d/conv2d.h"

namespace tamis::test {
namespace {

struct Case {
  Conv2dShape shape;
  int64_t out = 0;
  int32_t block_rows = 0;  // 0: csr
  double sparsity = 0.5;
  bool pixels_first = false;  // HWC
  int64_t padding = 0;        // elements between rows, planes and images
  bool bias = true, clamp = false, integers = false;

  std::string text() const {
    const Conv2dShape& s = shape;
    char t[250];
    std::snprintf(t, sizeof t,
                  "images=%d channels=%d %dx%d kernel=%dx%d stride=%d pad=%d dilation=%d out=%d "
                  "block=%d sparsity=%g hwc=%d padding=%d bias=%d clamp=%d integers=%d",
                  int(s.images), int(s.channels), int(s.height), int(s.width), int(s.kernel_h),
                  int(s.kernel_w), int(s.stride_h), int(s.pad_h), int(s.dilation_h), int(out),
                  block_rows, sparsity, pixels_first, int(padding), bias, clamp, integers);
    return t;
  }
};

class Problem {
 public:
  Problem(const Case& c, Conv2dWeight weight, uint64_t seed) : random_(seed) {
    const Conv2dShape& s = c.shape;
    args.shape = s;
    if (c.pixels_first) {
      args.x_column_stride = s.channels + c.padding;
      args.x_row_stride = s.width * args.x_column_stride;
      args.x_channel_stride = 1;
      args.x_image_stride = s.height * args.x_row_stride;
    } else {
      args.x_row_stride = s.width + c.padding;
      args.x_channel_stride = s.height * args.x_row_stride + c.padding;
      args.x_image_stride = s.channels * args.x_channel_stride + c.padding;
    }
    const int64_t last = (s.images - 1) * args.x_image_stride +
                         (s.channels - 1) * args.x_channel_stride +
                         (s.height - 1) * args.x_row_stride + (s.width - 1) * args.x_column_stride;
    x_ = std::make_unique<Guarded<float>>(static_cast<size_t>(last + 1));
    std::fill_n(x_->data(), last + 1, NAN);
    for (int64_t b = 0; b < s.images; ++b) {
      for (int64_t ch = 0; ch < s.channels; ++ch) {
        for (int64_t i = 0; i < s.height; ++i) {
          for (int64_t j = 0; j < s.width; ++j) {
            x_->data()[b * args.x_image_stride + ch * args.x_channel_stride +
                       i * args.x_row_stride + j * args.x_column_stride] = number(c.integers);
          }
        }
      }
    }
    args.x = x_->data();
    const int64_t area = s.kernel_h * s.kernel_w;
    const int64_t out = weight == Conv2dWeight::depthwise ? s.channels : c.out;
    if (weight == Conv2dWeight::depthwise) {
      dense_ = std::make_unique<Guarded<float>>(static_cast<size_t>(s.channels * area));
      for (float& w : dense_->span()) w = number(c.integers);
      args.depthwise = dense_->data();
    } else {
      pack_weights(c, s.channels * area);
    }
    if (c.bias) {
      bias_ = std::make_unique<Guarded<float>>(static_cast<size_t>(out));
      for (float& b : bias_->span()) b = number(c.integers);
      args.bias = bias_->data();
    }
    if (c.clamp) args.low = -1.5f, args.high = 2.25f;
    args.y_image_stride = out * s.out_h() * s.out_w() + c.padding;
    size = static_cast<size_t>((s.images - 1) * args.y_image_stride + out * s.out_h() * s.out_w());
  }

  Conv2dArgs args;
  size_t size;

 private:
  float number(bool integer) {
    return integer ? static_cast<float>(static_cast<int>(random_() % 9) - 4) : normal_(random_);
  }

  void pack_weights(const Case& c, int64_t columns) {
    const int64_t height = std::max(c.block_rows, 1);
    std::vector<float> dense(static_cast<size_t>(c.out * columns));
    for (int64_t block = 0; block < c.out / height; ++block) {
      for (int64_t k = 0; k < columns; ++k) {
        if (std::uniform_real_distribution<>()(random_) < c.sparsity) continue;
        for (int64_t r = 0; r < height; ++r) {
          dense[static_cast<size_t>((block * height + r) * columns + k)] = number(c.integers);
        }
      }
    }
    const DenseView view{.data = dense.data(), .rows = c.out, .cols = columns, .stride = columns};
    const PackSpec spec{.format = c.block_rows ? Format::block : Format::csr,
                        .block_rows = c.block_rows,
                        .block_cols = c.block_rows ? 1 : 0};
    PackSizes sizes;
    ASSERT_TRUE(pack_sizes(view, spec, &sizes).ok());
    values_ = std::make_unique<Guarded<float>>(static_cast<size_t>(sizes.values));
    offsets_ = std::make_unique<Guarded<int64_t>>(static_cast<size_t>(sizes.row_offsets));
    columns_ = std::make_unique<Guarded<int32_t>>(static_cast<size_t>(sizes.col_indices));
    ASSERT_TRUE(pack(view, spec,
                     {.values = values_->data(),
                      .row_offsets = offsets_->data(),
                      .col_indices = columns_->data()})
                    .ok());
    args.w = {.format = spec.format,
              .rows = c.out,
              .cols = columns,
              .values = values_->data(),
              .nnz = sizes.values,
              .row_offsets = offsets_->data(),
              .col_indices = columns_->data(),
              .block_rows = spec.block_rows,
              .block_cols = spec.block_cols};
    ASSERT_TRUE(check(args.w, sizes).ok());
  }

  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
  std::unique_ptr<Guarded<float>> x_, dense_, bias_, values_;
  std::unique_ptr<Guarded<int64_t>> offsets_;
  std::unique_ptr<Guarded<int32_t>> columns_;
};

void expect_reference(const Conv2dRow& row, const Case& c, uint64_t seed) {
  SCOPED_TRACE(std::string(row.name) + " " + c.text() + " seed=" + std::to_string(seed));
  Problem p(c, row.weight, seed);
  constexpr float kUnwritten = -77.0f;
  Guarded<float> y(p.size), wanted(p.size);
  std::fill_n(y.data(), p.size, kUnwritten);
  std::fill_n(wanted.data(), p.size, kUnwritten);
  p.args.y = wanted.data();
  ASSERT_TRUE(conv2d_reference(p.args).ok());
  p.args.y = y.data();
  const Status status = conv2d_with(row, p.args);
  ASSERT_TRUE(status.ok()) << status.text;
  const auto terms = static_cast<float>(c.shape.channels * c.shape.kernel_h * c.shape.kernel_w);
  // Normal factors: |sum of terms| stays well below 16 * terms.
  const float bound = c.integers ? 0.0f : 0x1p-23f * 16 * (terms + 1);
  for (size_t i = 0; i < p.size; ++i) {
    ASSERT_LE(std::abs(y[i] - wanted[i]), bound) << "y[" << i << "] " << y[i] << " " << wanted[i];
  }
}

// Cases of one row: images around its vectors, every kind of window.
std::vector<Case> cases(const Conv2dRow& row) {
  std::vector<Case> all;
  const int64_t t = row.lanes;
  const int32_t heights[] = {1, 2, 3, 4, 8, 16};
  size_t turn = 0;
  const auto add = [&](Conv2dShape shape) {
    const int64_t reach = (shape.kernel_w - 1) * shape.dilation_w + 1;
    if (reach > shape.width + 2 * shape.pad_w) return;
    for (const double sparsity : {0.0, 0.5, 0.9, 1.0}) {
      Case c{.shape = shape, .sparsity = sparsity};
      ++turn;
      if (row.weight == Conv2dWeight::block) c.block_rows = heights[turn % 6];
      c.out = std::max(c.block_rows, 1) * static_cast<int64_t>(1 + turn % 3);
      c.pixels_first = turn % 5 == 2;
      c.padding = turn % 4 == 1 ? 3 : 0;
      c.bias = turn % 3 != 0;
      c.clamp = turn % 2 == 0;
      c.integers = turn % 7 < 3;
      all.push_back(c);
      if (row.weight == Conv2dWeight::depthwise) break;
    }
  };
  // 1x1: one pixel, around a vector, around a strip and several.
  for (const int64_t width : {int64_t{1}, t, t + 1, 2 * t + 3, 8 * t, 8 * t + 1, 19 * t + 5}) {
    for (const int64_t height : {1, 3}) {
      add({.images = 1 + height / 3, .channels = 5, .height = height, .width = width});
    }
  }
  for (const int64_t side : {7, 14, 28})
    add({.images = 1, .channels = 37, .height = side, .width = side});
  for (const int64_t kernel : {1, 2, 3, 5}) {
    for (const int64_t stride : {1, 2, 3}) {
      for (const int64_t pad : {0, 1, 2}) {
        for (const int64_t side : {int64_t{5}, t + 2, 2 * t + 5}) {
          add({.images = 2,
               .channels = 3,
               .height = 6,
               .width = side,
               .kernel_h = kernel,
               .kernel_w = kernel,
               .stride_h = stride,
               .stride_w = stride,
               .pad_h = pad,
               .pad_w = pad,
               .dilation_h = pad > 1 && kernel < 5 ? 2 : 1,
               .dilation_w = pad > 1 && kernel < 5 ? 2 : 1});
        }
      }
    }
  }
  add({.images = 1,
       .channels = 2,
       .height = 9,
       .width = 11,
       .kernel_h = 3,
       .kernel_w = 1,
       .stride_h = 2,
       .pad_h = 4,
       .pad_w = 1});
  add({.images = 1,
       .channels = 2,
       .height = 4,
       .width = 1,
       .kernel_w = 2,
       .stride_w = 3,
       .pad_w = 3});
  return all;
}

TEST(Conv2d, EveryKernelIsTheReference) {
  int ran = 0;
  uint64_t number = 0;
  for (const Conv2dRow& row : conv2d_kernels()) {
    if ((row.isa & host_isa()) != row.isa) {
      std::printf("SKIP %s\n", row.name);
      continue;
    }
    for (const Case& c : cases(row)) {
      if (!keeps_case(number++)) continue;
      expect_reference(row, c, number);
      if (HasFatalFailure()) return;
      ++ran;
    }
  }
  EXPECT_GT(ran, 0);
}

TEST(Conv2d, ThreadsShareRowsOrPositions) {
  set_num_threads(3);
  for (const Conv2dRow& row : conv2d_kernels()) {
    if ((row.isa & host_isa()) != row.isa) continue;
    Case c{.shape = {.images = 2, .channels = 32, .height = 7, .width = 7}, .out = 512};
    if (row.weight == Conv2dWeight::block) c.block_rows = 8;
    expect_reference(row, c, 1);  // few positions: rows
    c.shape = {.images = 1, .channels = 24, .height = 33, .width = 61};
    c.out = 40;
    expect_reference(row, c, 2);
    c.shape.kernel_h = c.shape.kernel_w = 3;
    c.shape.pad_h = c.shape.pad_w = 1;
    c.shape.stride_h = c.shape.stride_w = 2;
    expect_reference(row, c, 3);
    if (HasFatalFailure()) break;
  }
  set_num_threads(0);
}

TEST(Conv2d, NanPassesTheClamp) {
  for (const Conv2dRow& row : conv2d_kernels()) {
    if ((row.isa & host_isa()) != row.isa || row.weight == Conv2dWeight::depthwise) continue;
    const Case c{.shape = {.images = 1, .channels = 1, .height = 5, .width = 5},
                 .out = 2,
                 .block_rows = row.weight == Conv2dWeight::block ? 2 : 0,
                 .sparsity = 0,
                 .clamp = true};
    Problem p(c, row.weight, 1);
    std::vector<float> x(25, NAN), y(50);
    p.args.x = x.data();
    p.args.y = y.data();
    ASSERT_TRUE(conv2d_with(row, p.args).ok());
    for (const float v : y) ASSERT_TRUE(std::isnan(v)) << row.name;
  }
}

TEST(Conv2d, MeansOfPlanes) {
  for (const PlaneMeanRow& row : plane_mean_kernels()) {
    if ((row.isa & host_isa()) != row.isa) {
      std::printf("SKIP %s\n", row.name);
      continue;
    }
    for (const int64_t pixels : {1, 7, 8, 16, 17, 49, 196}) {
      Guarded<float> x(static_cast<size_t>(3 * pixels)), y(3);
      for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 13) - 5;
      row.run(x.data(), 3, pixels, pixels, y.data());
      for (int64_t i = 0; i < 3; ++i) {
        double sum = 0;
        for (int64_t p = 0; p < pixels; ++p)
          sum += static_cast<double>(x[static_cast<size_t>(i * pixels + p)]);
        EXPECT_FLOAT_EQ(y[static_cast<size_t>(i)],
                        static_cast<float>(sum / static_cast<double>(pixels)))
            << row.name;
      }
    }
  }
}

TEST(Conv2d, RefusesWhatItCannotDo) {
  const Case c{.shape = {.images = 1, .channels = 3, .height = 4, .width = 4}, .out = 2};
  Problem p(c, Conv2dWeight::csr, 1);
  std::vector<float> y(p.size);
  p.args.y = y.data();
  ASSERT_TRUE(conv2d(p.args).ok());
  const auto refuses = [&](Conv2dArgs a, Code code) {
    const Status status = conv2d(a);
    EXPECT_EQ(status.code, code) << status.text;
  };
  Conv2dArgs a = p.args;
  a.shape.kernel_h = 5;
  refuses(a, Code::invalid_argument);
  a = p.args;
  a.shape.stride_w = 0;
  refuses(a, Code::invalid_argument);
  a = p.args;
  a.shape.channels = 4;
  refuses(a, Code::invalid_argument);
  a = p.args;
  a.w.format = Format::bitmap;
  refuses(a, Code::no_kernel);
  a = p.args;
  a.w.dtype = DType::bf16;
  refuses(a, Code::unsupported_dtype);
  a = p.args;
  a.x = nullptr;
  refuses(a, Code::invalid_argument);
  a = p.args;
  a.shape.images = 2;
  a.y_image_stride = 1;
  refuses(a, Code::invalid_argument);
  EXPECT_EQ(plane_mean(nullptr, 1, 1, 1, nullptr).code, Code::invalid_argument);
}

TEST(Conv2d, ChoosesTheBestKernel) {
#if defined(__x86_64__)
  EXPECT_STREQ(choose_conv2d(Conv2dWeight::block, isa::avx512bf16)->name,
               "conv2d_block_f32_avx512");
  EXPECT_STREQ(choose_conv2d(Conv2dWeight::csr, isa::avx2)->name, "conv2d_csr_f32_avx2");
#elif defined(__aarch64__)
  EXPECT_STREQ(choose_conv2d(Conv2dWeight::csr, isa::neon_dot)->name, "conv2d_csr_f32_neon");
#endif
  EXPECT_STREQ(choose_conv2d(Conv2dWeight::depthwise, isa::kScalar)->name,
               "conv2d_depthwise_f32_scalar");
}

}  // namespace
}  // namespace tamis::test
