// conv2d: choice of a kernel, planes for it, and its run on the threads of this process.
#include "ops/conv2d/conv2d.h"

#include <algorithm>

#include "base/parallel.h"
#include "base/scratch.h"
#include "ops/conv2d/kernels.h"

namespace tamis {
namespace {

// A thread is worth starting for this many products, about 10 us of one.
constexpr int64_t kProductsPerThread = 200'000;
// A thread with fewer vectors of positions than this had better share rows.
constexpr int64_t kVectorsPerThread = 16;

// Rows of x that lie a plane apart miss the TLB and, if their distance is a power of two, share
// sets of the cache. Copying a strip of all channels is worth while from this many uses of each on:
// 256 x 256 at 90 % zeros then takes half the time (Emerald Rapids).
constexpr int64_t kUsesOfPacked = 4;

constexpr Conv2dRow kKernels[] = {
#define TAMIS_CONV2D(weight, level, lanes)                                             \
  {"conv2d_" #weight "_f32_" #level, Conv2dWeight::weight,          isa::level, lanes, \
   &conv2d_prepare_##level,          &conv2d_##weight##_f32_##level},
#define TAMIS_PLANE_MEAN(dtype, level)
#include "ops/conv2d/kernels.def"
#undef TAMIS_CONV2D
#undef TAMIS_PLANE_MEAN
};
constexpr PlaneMeanRow kMeans[] = {
#define TAMIS_CONV2D(weight, level, lanes)
#define TAMIS_PLANE_MEAN(dtype, level) \
  {"plane_mean_" #dtype "_" #level, isa::level, &plane_mean_##dtype##_##level},
#include "ops/conv2d/kernels.def"
#undef TAMIS_CONV2D
#undef TAMIS_PLANE_MEAN
};

int64_t outputs(const Conv2dArgs& a) {
  return a.depthwise ? a.shape.channels : a.w.rows;
}

int64_t products(const Conv2dArgs& a, const Conv2dPlan& plan) {
  const int64_t entries =
      a.depthwise ? a.shape.channels * a.shape.kernel_h * a.shape.kernel_w : a.w.nnz;
  return entries * plan.positions;
}

// First output, a multiple of a block's height, with at least part/parts of all entries before it.
int64_t split_outputs(const Conv2dArgs& a, int part, int parts) {
  if (a.depthwise) return a.shape.channels * part / parts;
  const int64_t height = std::max(a.w.block_rows, 1), blocks = a.w.rows / height;
  const int64_t* offsets = a.w.row_offsets;
  if (part == parts) return a.w.rows;
  const auto goal = static_cast<int64_t>(static_cast<double>(offsets[blocks]) * part / parts);
  return (std::lower_bound(offsets, offsets + blocks, goal) - offsets) * height;
}

void run_image(const Conv2dRow& row, const Conv2dArgs& a, const Conv2dPlan& plan,
               const Conv2dImage& whole, int threads) {
  const int64_t out = outputs(a), vectors = plan.positions / row.lanes;
  if (threads <= 1) return row.run(a, plan, whole, 0, out, 0, plan.positions);
  // By position each thread has a part of x to itself, and all of w.
  const bool by_position = !a.depthwise && vectors / threads >= kVectorsPerThread;
  parallel(threads, [&](int thread, int count) {
    Conv2dImage image = whole;
    if (image.room) image.room += thread * plan.room;
    if (by_position) {
      const int64_t first = vectors * thread / count * row.lanes;
      const int64_t last =
          thread + 1 == count ? plan.positions : vectors * (thread + 1) / count * row.lanes;
      return row.run(a, plan, image, 0, out, first, last);
    }
    const int64_t begin = split_outputs(a, thread, count);
    const int64_t end = split_outputs(a, thread + 1, count);
    if (begin < end) row.run(a, plan, image, begin, end, 0, plan.positions);
  });
}

}  // namespace

std::span<const Conv2dRow> conv2d_kernels() {
  return kKernels;
}
std::span<const PlaneMeanRow> plane_mean_kernels() {
  return kMeans;
}

Conv2dWeight weight_of(const Conv2dArgs& a) {
  if (a.depthwise) return Conv2dWeight::depthwise;
  return a.w.format == Format::csr ? Conv2dWeight::csr : Conv2dWeight::block;
}

const char* name_of(Conv2dWeight weight) {
  switch (weight) {
    case Conv2dWeight::csr:
      return "csr";
    case Conv2dWeight::block:
      return "block";
    case Conv2dWeight::depthwise:
      return "depthwise";
  }
  return "?";
}

Conv2dPlan plan_conv2d(const Conv2dArgs& a) {
  const Conv2dShape& s = a.shape;
  const int64_t reach_h = (s.kernel_h - 1) * s.dilation_h,
                reach_w = (s.kernel_w - 1) * s.dilation_w;
  Conv2dPlan plan{.out_w = s.out_w(), .out_plane = s.out_h() * s.out_w()};
  plan.copies = reach_h > 0 || reach_w > 0 || s.stride_h > 1 || s.stride_w > 1 || s.pad_h > 0 ||
                s.pad_w > 0 || a.x_column_stride != 1 || a.x_row_stride != s.width;
  if (!plan.copies) {
    plan.rows = s.height;
    plan.pitch = s.width;
    plan.channel = a.x_channel_stride;
  } else {
    plan.phases_h = std::min(s.stride_h, reach_h + 1);
    plan.phases_w = std::min(s.stride_w, reach_w + 1);
    plan.rows = s.out_h() + reach_h / s.stride_h;
    plan.pitch = s.out_w() + reach_w / s.stride_w;
    plan.channel = plan.phases_h * plan.phases_w * plan.rows * plan.pitch;
  }
  plan.positions = (s.out_h() - 1) * plan.pitch + s.out_w();
  if (a.depthwise) {
    plan.room = plan.copies ? plan.channel + plan.positions : 0;
  } else if (!plan.copies && a.w.nnz >= kUsesOfPacked * s.channels) {
    plan.room = s.channels * kStripPositions;
  }
  return plan;
}

int64_t column_offset(const Conv2dShape& s, const Conv2dPlan& plan, int64_t column) {
  const int64_t area = s.kernel_h * s.kernel_w;
  const int64_t y = column % area / s.kernel_w * s.dilation_h;
  const int64_t x = column % s.kernel_w * s.dilation_w;
  const int64_t phase = y % s.stride_h * plan.phases_w + x % s.stride_w;
  return column / area * plan.channel + (phase * plan.rows + y / s.stride_h) * plan.pitch +
         x / s.stride_w;
}

const Conv2dRow* choose_conv2d(Conv2dWeight weight, IsaBits isa) {
  for (const Conv2dRow& row : kKernels) {
    if (row.weight == weight && (row.isa & isa) == row.isa) return &row;
  }
  return nullptr;
}

Status conv2d(const Conv2dArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_conv2d(a));
  return conv2d_with(*choose_conv2d(weight_of(a), active_isa()), a);
}

Status conv2d_with(const Conv2dRow& row, const Conv2dArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_conv2d(a));
  if (a.shape.images == 0 || outputs(a) == 0) return {};
  const Conv2dPlan plan = plan_conv2d(a);
  const auto work = std::min<int64_t>(products(a, plan) / kProductsPerThread, num_threads());
  const int threads = static_cast<int>(std::max<int64_t>(work, 1));

  // Offsets of columns, then planes of an image, or each thread's room.
  const int64_t area = a.shape.kernel_h * a.shape.kernel_w;
  const int64_t columns = area * (a.depthwise ? 1 : a.shape.channels);
  const bool table = plan.copies || a.depthwise;
  const int64_t table_bytes = table ? ceil_div(columns * 8, 64) * 64 : 0;
  const bool copies = plan.copies && !a.depthwise;
  const int64_t elements = copies ? a.shape.channels * plan.channel : threads * plan.room;
  auto* memory = static_cast<uint8_t*>(scratch(table_bytes + elements * 4));
  if (!memory) return error(Code::out_of_memory, "conv2d: no memory to copy planes");
  auto* offsets = reinterpret_cast<int64_t*>(memory);
  auto* planes = reinterpret_cast<float*>(memory + table_bytes);
  for (int64_t i = 0; table && i < columns; ++i) offsets[i] = column_offset(a.shape, plan, i);

  for (int64_t b = 0; b < a.shape.images; ++b) {
    Conv2dImage image{.x = a.x + b * a.x_image_stride,
                      .offsets = table ? offsets : nullptr,
                      .y = a.y + b * a.y_image_stride};
    if (plan.room > 0) image.room = planes;
    if (copies) {
      parallel(threads, [&](int thread, int count) {
        row.prepare(a, plan, image.x, a.shape.channels * thread / count,
                    a.shape.channels * (thread + 1) / count, planes);
      });
      image.x = planes;
    }
    run_image(row, a, plan, image, threads);
  }
  return {};
}

Status plane_mean(const float* x, int64_t planes, int64_t stride, int64_t pixels, float* y) {
  if (planes < 0 || pixels < 1) {
    return error(Code::invalid_argument,
                 "plane_mean: planes, pixels: got %lld and %lld, wanted at least 0 and 1",
                 static_cast<long long>(planes), static_cast<long long>(pixels));
  }
  if (planes > 0 && (!x || !y)) {
    return error(Code::invalid_argument, "plane_mean: x, y: got null, wanted an array");
  }
  for (const PlaneMeanRow& row : kMeans) {
    if ((row.isa & active_isa()) != row.isa) continue;
    row.run(x, planes, stride, pixels, y);
    break;
  }
  return {};
}

}  // namespace tamis
