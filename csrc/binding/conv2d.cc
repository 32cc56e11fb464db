// conv2d over raw addresses, so that a call costs little beside the kernel.
#include "binding/conv2d.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>

#include "base/isa.h"
#include "base/status.h"
#include "binding/array.h"
#include "binding/kernel_row.h"
#include "binding/matrix.h"
#include "ops/conv2d/conv2d.h"

namespace tamis::binding {
namespace {

using Four = std::array<int64_t, 4>;
using Eight = std::array<int64_t, 8>;

// size: images, channels, height, width; window: kernel, stride, padding, dilation, each as height
// and width; strides: of image, channel, row, column.
Conv2dArgs arguments(uintptr_t x, const Four& size, const Eight& window, const Four& strides,
                     uintptr_t bias, uintptr_t y, float low, float high) {
  Conv2dArgs args;
  args.shape = {.images = size[0],
                .channels = size[1],
                .height = size[2],
                .width = size[3],
                .kernel_h = window[0],
                .kernel_w = window[1],
                .stride_h = window[2],
                .stride_w = window[3],
                .pad_h = window[4],
                .pad_w = window[5],
                .dilation_h = window[6],
                .dilation_w = window[7]};
  args.x = reinterpret_cast<const float*>(x);
  args.x_image_stride = strides[0];
  args.x_channel_stride = strides[1];
  args.x_row_stride = strides[2];
  args.x_column_stride = strides[3];
  args.bias = reinterpret_cast<const float*>(bias);
  args.y = reinterpret_cast<float*>(y);
  args.low = low;
  args.high = high;
  return args;
}

void run(Conv2dArgs args, int64_t outputs) {
  Status status;
  {
    const py::gil_scoped_release release;
    if (args.shape.stride_h > 0 && args.shape.stride_w > 0) {  // else the check refuses
      args.y_image_stride = outputs * args.shape.out_h() * args.shape.out_w();
    }
    status = conv2d(args);
  }
  raise_if_error(status);
}

void sparse(const Matrix& w, uintptr_t x, const Four& size, const Eight& window,
            const Four& strides, uintptr_t bias, uintptr_t y, float low, float high) {
  Conv2dArgs args = arguments(x, size, window, strides, bias, y, low, high);
  args.w = w.view();
  run(args, args.w.rows);
}

void depthwise(uintptr_t taps, uintptr_t x, const Four& size, const Eight& window,
               const Four& strides, uintptr_t bias, uintptr_t y, float low, float high) {
  Conv2dArgs args = arguments(x, size, window, strides, bias, y, low, high);
  args.depthwise = reinterpret_cast<const float*>(taps);
  run(args, size[1]);
}

void mean(uintptr_t x, int64_t planes, int64_t stride, int64_t pixels, uintptr_t y) {
  Status status;
  {
    const py::gil_scoped_release release;
    status = plane_mean(reinterpret_cast<const float*>(x), planes, stride, pixels,
                        reinterpret_cast<float*>(y));
  }
  raise_if_error(status);
}

py::list kernel_rows() {
  py::list rows;
  for (const Conv2dRow& row : conv2d_kernels()) {
    rows.append(dict_of(
        {row.name, "conv2d", name_of(row.weight), "f32", "f32", {}, row.lanes, 1, {}}, row.isa));
  }
  for (const PlaneMeanRow& row : plane_mean_kernels()) {
    rows.append(dict_of({row.name, "plane_mean", "dense", "f32", "f32", {}, 1, 1, {}}, row.isa));
  }
  return rows;
}

std::string choose(const std::string& weight, const std::string& isa) {
  for (const Conv2dRow& row : conv2d_kernels()) {
    if (weight == name_of(row.weight)) {
      return choose_conv2d(row.weight, isa_from("choose_conv2d", isa))->name;
    }
  }
  throw py::value_error("choose_conv2d: weight: got '" + weight +
                        "', wanted 'csr', 'block' or 'depthwise'");
}

}  // namespace

void bind_conv2d(py::module_& m) {
  using namespace py::literals;
  m.def("conv2d", &sparse, "matrix"_a, "x_ptr"_a, "size"_a, "window"_a, "strides"_a, "bias_ptr"_a,
        "y_ptr"_a, "low"_a, "high"_a);
  m.def("depthwise_conv2d", &depthwise, "taps_ptr"_a, "x_ptr"_a, "size"_a, "window"_a, "strides"_a,
        "bias_ptr"_a, "y_ptr"_a, "low"_a, "high"_a);
  m.def("plane_mean", &mean, "x_ptr"_a, "planes"_a, "stride"_a, "pixels"_a, "y_ptr"_a);
  m.def("conv2d_kernels", &kernel_rows);
  m.def("choose_conv2d", &choose, "weight"_a, "isa"_a);
}

}  // namespace tamis::binding
