// conv2d straight from the formula, in double.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "format/format.h"
#include "ops/conv2d/conv2d.h"

namespace tamis {
namespace {

// Sum over the taps of channel c of output pixel (p, q).
double taps(const Conv2dArgs& a, const float* image, const float* w, int64_t c, int64_t p,
            int64_t q) {
  const Conv2dShape& s = a.shape;
  double sum = 0;
  for (int64_t i = 0; i < s.kernel_h; ++i) {
    for (int64_t j = 0; j < s.kernel_w; ++j) {
      const int64_t row = p * s.stride_h + i * s.dilation_h - s.pad_h;
      const int64_t column = q * s.stride_w + j * s.dilation_w - s.pad_w;
      const double weight = static_cast<double>(w[i * s.kernel_w + j]);
      if (row < 0 || row >= s.height || column < 0 || column >= s.width || weight == 0) continue;
      const int64_t at = c * a.x_channel_stride + row * a.x_row_stride + column * a.x_column_stride;
      sum += weight * static_cast<double>(image[at]);
    }
  }
  return sum;
}

}  // namespace

Status conv2d_reference(const Conv2dArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_conv2d(a));
  const Conv2dShape& s = a.shape;
  const int64_t area = s.kernel_h * s.kernel_w;
  const int64_t out = a.depthwise ? s.channels : a.w.rows;
  std::vector<float> dense(static_cast<size_t>(a.depthwise ? 0 : a.w.rows * a.w.cols));
  if (!a.depthwise) TAMIS_RETURN_IF_ERROR(unpack(a.w, dense.data(), a.w.cols));
  for (int64_t b = 0; b < s.images; ++b) {
    const float* image = a.x + b * a.x_image_stride;
    for (int64_t o = 0; o < out; ++o) {
      float* y = a.y + b * a.y_image_stride + o * s.out_h() * s.out_w();
      for (int64_t p = 0; p < s.out_h(); ++p) {
        for (int64_t q = 0; q < s.out_w(); ++q) {
          double sum = a.bias ? static_cast<double>(a.bias[o]) : 0.0;
          if (a.depthwise) {
            sum += taps(a, image, a.depthwise + o * area, o, p, q);
          } else {
            for (int64_t c = 0; c < s.channels; ++c) {
              sum += taps(a, image, dense.data() + o * a.w.cols + c * area, c, p, q);
            }
          }
          const auto rounded = static_cast<float>(sum);
          *y++ = std::isnan(rounded) ? rounded : std::min(std::max(rounded, a.low), a.high);
        }
      }
    }
  }
  return {};
}

}  // namespace tamis
