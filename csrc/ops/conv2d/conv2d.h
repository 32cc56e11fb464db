// conv2d: y[b,o,p,q] = clamp(bias[o] + sum_{c,i,j} w[o,(c,i,j)] * x[b,c,p*s+i*d-pad,q*s+j*d-pad]),
// w compressed, activations in channel planes (CHW); a depthwise convolution with the same loop;
// and the mean of each plane.
//
// A convolution in CHW is a sparse matrix times a wide dense one whose rows are planes: a vector
// holds neighbouring pixels, so an entry of w costs one broadcast and nothing has to be gathered.
// Elsen, Dukhan, Gale, Simonyan: Fast Sparse ConvNets, 2019 (arXiv:1911.09723).
#pragma once

#include <cstdint>
#include <span>

#include "base/isa.h"
#include "base/status.h"
#include "format/matrix.h"

namespace tamis {

// Where taps lie. Outside the image x is 0.
struct Conv2dShape {
  int64_t images = 0, channels = 0, height = 0, width = 0;  // of x
  int64_t kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1;
  int64_t pad_h = 0, pad_w = 0;  // above and below, left and right
  int64_t dilation_h = 1, dilation_w = 1;

  constexpr int64_t out_h() const {
    return (height + 2 * pad_h - (kernel_h - 1) * dilation_h - 1) / stride_h + 1;
  }
  constexpr int64_t out_w() const {
    return (width + 2 * pad_w - (kernel_w - 1) * dilation_w - 1) / stride_w + 1;
  }
};

// What multiplies: the rows of w, or one row of taps for each channel.
enum class Conv2dWeight : uint8_t { csr, block, depthwise };

// x: f32, any strides (elements): CHW, or HWC for the first layer. y: [images, out, out_h * out_w],
// f32, planes contiguous; must not overlap x.
// w: csr, or block of r x 1 (r outputs share their input channels: vector sparsity), f32, [out,
// channels * kernel_h * kernel_w] with columns in the order of a torch weight: c, i, j.
struct Conv2dArgs {
  Conv2dShape shape;
  MatrixView w;                      // unused if depthwise
  const float* depthwise = nullptr;  // [channels, kernel_h * kernel_w]: out = channels
  const float* x = nullptr;
  int64_t x_image_stride = 0, x_channel_stride = 0, x_row_stride = 0, x_column_stride = 1;
  const float* bias = nullptr;  // [out] or null
  float* y = nullptr;
  int64_t y_image_stride = 0;
  float low = -__builtin_inff(), high = __builtin_inff();  // NaN stays NaN
};

// How a kernel sees x: planes in which a tap is the same distance from every output position. Those
// of x itself for a 1x1 convolution of stride 1, else copies: padded with zeros and split by
// stride, pixel (i*s + a, j*s + b) going to phase (a, b), row i, column j. Positions count along
// the rows of a phase, so between two rows of outputs there are pitch - out_w that nobody wants.
struct Conv2dPlan {
  bool copies = false;
  int64_t phases_h = 1, phases_w = 1;
  int64_t rows = 0, pitch = 0;  // of a phase
  int64_t channel = 0;          // elements from one channel to the next
  int64_t positions = 0, out_w = 0, out_plane = 0;
  // Elements that each thread needs: if depthwise for the planes of a channel and its positions;
  // for 1x1 for a strip of kStripPositions of every channel, 0 if that is not worth while.
  int64_t room = 0;
};

inline constexpr int64_t kStripPositions = 128;

// One image, ready to be multiplied.
struct Conv2dImage {
  const float* x = nullptr;          // planes; if depthwise x as the caller has it
  const int64_t* offsets = nullptr;  // [columns of w] from x; null: plan.channel * column
  float* room = nullptr;             // [plan.room] of this thread, or null
  float* y = nullptr;
};

// Copies channels [begin, end) of an image into planes.
using Conv2dPrepare = void (*)(const Conv2dArgs&, const Conv2dPlan&, const float* image,
                               int64_t begin, int64_t end, float* planes);
// Outputs [begin, end), whole blocks, at positions [first, last): at least `lanes`, or all.
using Conv2dKernel = void (*)(const Conv2dArgs&, const Conv2dPlan&, const Conv2dImage&,
                              int64_t begin, int64_t end, int64_t first, int64_t last);

// One line of kernels.def.
struct Conv2dRow {
  const char* name;  // conv2d_<weight>_f32_<isa>
  Conv2dWeight weight;
  IsaBits isa;
  int lanes;  // f32 of one vector
  Conv2dPrepare prepare;
  Conv2dKernel run;
};

// All kernels, best first for each kind of weight.
std::span<const Conv2dRow> conv2d_kernels();

Conv2dWeight weight_of(const Conv2dArgs& a);
const char* name_of(Conv2dWeight weight);
Conv2dPlan plan_conv2d(const Conv2dArgs& a);
// Offset of column (c, i, j) of w in the planes of an image.
int64_t column_offset(const Conv2dShape& shape, const Conv2dPlan& plan, int64_t column);

// First row that fits; null if none. Pure.
const Conv2dRow* choose_conv2d(Conv2dWeight weight, IsaBits isa);

// Shapes, strides and pointers; w's contents are for the format's check.
Status check_conv2d(const Conv2dArgs& args);

// Checks, chooses for this host, runs on the pool.
Status conv2d(const Conv2dArgs& args);
Status conv2d_with(const Conv2dRow& row, const Conv2dArgs& args);

// Straight from the formula, in double.
Status conv2d_reference(const Conv2dArgs& args);

// y[i] = mean of the `pixels` numbers from x + i * stride on, i < planes.
using PlaneMeanKernel = void (*)(const float* x, int64_t planes, int64_t stride, int64_t pixels,
                                 float* y);
struct PlaneMeanRow {
  const char* name;  // plane_mean_f32_<isa>
  IsaBits isa;
  PlaneMeanKernel run;
};
std::span<const PlaneMeanRow> plane_mean_kernels();
Status plane_mean(const float* x, int64_t planes, int64_t stride, int64_t pixels, float* y);

}  // namespace tamis
