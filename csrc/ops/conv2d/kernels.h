// Declares every kernel of kernels.def.
#pragma once

#include "ops/conv2d/conv2d.h"

namespace tamis {
#define TAMIS_CONV2D(weight, isa, lanes)                                                     \
  void conv2d_prepare_##isa(const Conv2dArgs&, const Conv2dPlan&, const float* image,        \
                            int64_t begin, int64_t end, float* planes);                      \
  void conv2d_##weight##_f32_##isa(const Conv2dArgs&, const Conv2dPlan&, const Conv2dImage&, \
                                   int64_t begin, int64_t end, int64_t first, int64_t last);
#define TAMIS_PLANE_MEAN(dtype, isa)                                                              \
  void plane_mean_##dtype##_##isa(const float* x, int64_t planes, int64_t stride, int64_t pixels, \
                                  float* y);
#include "ops/conv2d/kernels.def"
#undef TAMIS_CONV2D
#undef TAMIS_PLANE_MEAN
}  // namespace tamis
