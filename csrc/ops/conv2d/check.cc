// conv2d: what a caller may get wrong.
#include "format/matrix.h"
#include "ops/conv2d/conv2d.h"

namespace tamis {
namespace {

Status check_shape(const Conv2dShape& s) {
  constexpr int64_t kMost = int64_t{1} << 31;
  const struct {
    const char* name;
    int64_t got, least;
  } fields[] = {{"images", s.images, 0},         {"channels", s.channels, 0},
                {"height", s.height, 1},         {"width", s.width, 1},
                {"kernel_h", s.kernel_h, 1},     {"kernel_w", s.kernel_w, 1},
                {"stride_h", s.stride_h, 1},     {"stride_w", s.stride_w, 1},
                {"pad_h", s.pad_h, 0},           {"pad_w", s.pad_w, 0},
                {"dilation_h", s.dilation_h, 1}, {"dilation_w", s.dilation_w, 1}};
  for (const auto& field : fields) {
    if (field.got < field.least || field.got >= kMost) {
      return error(Code::invalid_argument, "conv2d: %s: got %lld, wanted %lld to 2^31 - 1",
                   field.name, static_cast<long long>(field.got),
                   static_cast<long long>(field.least));
    }
  }
  const int64_t reach_h = (s.kernel_h - 1) * s.dilation_h + 1;
  const int64_t reach_w = (s.kernel_w - 1) * s.dilation_w + 1;
  if (reach_h > s.height + 2 * s.pad_h || reach_w > s.width + 2 * s.pad_w) {
    return error(Code::invalid_argument,
                 "conv2d: kernel: got %lld x %lld pixels with dilation, wanted at most the %lld x "
                 "%lld of a padded image",
                 static_cast<long long>(reach_h), static_cast<long long>(reach_w),
                 static_cast<long long>(s.height + 2 * s.pad_h),
                 static_cast<long long>(s.width + 2 * s.pad_w));
  }
  return {};
}

Status check_weight(const Conv2dArgs& a) {
  if (a.depthwise) return {};
  const MatrixView& w = a.w;
  if (w.format != Format::csr && (w.format != Format::block || w.block_cols != 1)) {
    return error(Code::no_kernel, "conv2d: w: got %s, wanted csr or block of r x 1",
                 name_of(w.format));
  }
  if (w.dtype != DType::f32) {
    return error(Code::unsupported_dtype, "conv2d: w: got %s, wanted f32", name_of(w.dtype));
  }
  const int64_t columns = a.shape.channels * a.shape.kernel_h * a.shape.kernel_w;
  if (w.cols != columns) {
    return error(Code::invalid_argument,
                 "conv2d: w: got %lld columns, wanted channels * kernel_h * kernel_w = %lld",
                 static_cast<long long>(w.cols), static_cast<long long>(columns));
  }
  return {};
}

}  // namespace

Status check_conv2d(const Conv2dArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_shape(a.shape));
  TAMIS_RETURN_IF_ERROR(check_weight(a));
  const int64_t out = a.depthwise ? a.shape.channels : a.w.rows;
  if (a.shape.images == 0 || out == 0) return {};
  if ((!a.x && a.shape.channels > 0) || !a.y) {
    return error(Code::invalid_argument, "conv2d: x, y: got null, wanted an array");
  }
  const int64_t size = out * a.shape.out_h() * a.shape.out_w();
  if (a.shape.images > 1 && a.y_image_stride < size) {
    return error(Code::invalid_argument, "conv2d: y_image_stride: got %lld, wanted at least %lld",
                 static_cast<long long>(a.y_image_stride), static_cast<long long>(size));
  }
  return {};
}

}  // namespace tamis
