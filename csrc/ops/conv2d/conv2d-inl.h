// conv2d: rows of w times strips of positions.  w: csr, block of r x 1, or depthwise taps, f32;
// accumulates f32, one chain per output, in the order of the columns.
//
// Tile: R outputs that share columns times T vectors of positions, T from kStripVectors of the
// ISA's file. All rows are multiplied by a strip before the next one, so that its part of x stays
// in cache. Strips are even: 7 vectors are 4 + 3, not 5 + 2. A 1x1 layer copies each strip of x
// next to itself first (kUsesOfPacked). Tail: the last vector overlaps the one before; fewer
// positions than a vector go by masks.
//
// R is 4, 2 or 1, whatever divides r, so that sums, rows and weights fit the registers. Loads of
// a vector per FMA: (T + R) / (T * R), so R = 1 is bound by loads, R > 1 by FMA.
#pragma once

#include "base/simd/weighted_rows.h"
#include "ops/conv2d/conv2d.h"

namespace tamis {
namespace {

template <int R>
inline constexpr int kMostVectors = kStripVectors[R / 2];
static_assert(kMostVectors<1> <= 5 && kMostVectors<2> <= 5 && kMostVectors<4> <= 5,
              "for_strips has a case for each number of vectors");
static_assert(kMostVectors<1> * simd::kLanes <= kStripPositions, "a strip fits its room");

// Where the entries of a row find their planes, in bytes.
struct ByColumn {  // 1x1
  const int32_t* columns;
  int64_t channel_bytes;
  TAMIS_INLINE int64_t operator()(int64_t e) const { return columns[e] * channel_bytes; }
};
struct ByTable {
  const int32_t* columns;
  const int64_t* offsets;
  TAMIS_INLINE int64_t operator()(int64_t e) const { return offsets[columns[e]] * 4; }
};
struct InOrder {  // depthwise
  const int64_t* offsets;
  TAMIS_INLINE int64_t operator()(int64_t e) const { return offsets[e] * 4; }
};

// Outputs among `width` positions from `first` on: pieces of rows.
struct Pieces {
  struct Piece {
    int32_t from, count;
    int64_t to;
  };
  int count = 0;
  // A row of positions that is longer than its outputs has two at least.
  Piece piece[kStripPositions / 2 + 2];

  void find(const Conv2dPlan& plan, int64_t first, int64_t width) {
    count = 0;
    int64_t row = first / plan.pitch, column = first % plan.pitch;
    for (int64_t at = 0; at < width; ++row, column = 0) {
      const int64_t here = plan.pitch - column < width - at ? plan.pitch - column : width - at;
      const int64_t wanted = plan.out_w - column < here ? plan.out_w - column : here;
      if (wanted > 0) {
        piece[count++] = {static_cast<int32_t>(at), static_cast<int32_t>(wanted),
                          row * plan.out_w + column};
      }
      at += here;
    }
  }
};

// One strip: T vectors of positions from `first` on.
template <int T, class Extent>
struct Strip {
  const Conv2dArgs& a;
  const Conv2dPlan& plan;
  int64_t first;
  Extent extent;
  const Pieces* pieces;  // null: every position is an output

  template <int R, class Offset>
  TAMIS_INLINE void multiply(const float* values, int64_t stride, int64_t begin, int64_t end,
                             const float* x, Offset offset, const float* bias, float* y) const {
    simd::F32 sum[R][T];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const simd::F32 start = bias ? lanes::splat(bias[r]) : simd::zero();
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sum[r][t] = start;
    }
    add_weighted_rows<R, T>(values, stride, begin, end, x + first, offset, extent, sum);
    const simd::F32 low = lanes::splat(a.low), high = lanes::splat(a.high);
    if (!pieces) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const simd::F32 value = lanes::min(high, lanes::max(low, sum[r][t]));
          extent.template store<T>(value, y + r * plan.out_plane + first, t);
        }
      }
      return;
    }
    alignas(64) float strip[R][T * simd::kLanes];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const simd::F32 value = lanes::min(high, lanes::max(low, sum[r][t]));
        extent.template store<T>(value, strip[r], t);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < pieces->count; ++i) {
        const Pieces::Piece& piece = pieces->piece[i];
        float* to = y + r * plan.out_plane + piece.to;
        for (int32_t j = 0; j < piece.count; ++j) to[j] = strip[r][piece.from + j];
      }
    }
  }

  // Copies the strip of every channel next to each other; returns from one to the next.
  int64_t pack(const float* x, float* room) const {
    constexpr int64_t kWidth = T * simd::kLanes;
    for (int64_t c = 0; c < a.shape.channels; ++c) {
      const float* from = x + first + c * plan.channel;
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        extent.template store<T>(extent.template load<T>(from, t), room + c * kWidth, t);
      }
    }
    return kWidth;
  }

  // Outputs [begin, end) of a compressed w. Not inlined: among other loops GCC spills its sums.
  template <int R, class Offset>
  __attribute__((noinline)) void rows(const Conv2dImage& image, Offset offset, int64_t begin,
                                      int64_t end) const {
    const MatrixView& w = a.w;
    const int64_t height = w.block_rows > 0 ? w.block_rows : 1;
    const auto* values = static_cast<const float*>(w.values);
    for (int64_t row = begin; row < end; row += R) {
      const int64_t block = row / height, within = row - block * height;
      multiply<R>(values + within, height, w.row_offsets[block], w.row_offsets[block + 1], image.x,
                  offset, a.bias ? a.bias + row : nullptr, image.y + row * plan.out_plane);
    }
  }
};

// Calls fn(strip) for every strip of positions [first, last), each of at most kMost vectors.
template <int kMost, class Fn>
TAMIS_INLINE void for_strips(const Conv2dArgs& a, const Conv2dPlan& plan, int64_t first,
                             int64_t last, const Fn& fn) {
  constexpr int64_t kLanes = simd::kLanes;
  Pieces found;
  const Pieces* pieces = plan.pitch == plan.out_w ? nullptr : &found;
  if (last - first < kLanes) {
    if (pieces) found.find(plan, first, last - first);
    const Partial extent{static_cast<int>(last - first)};
    return fn(Strip<1, Partial>{a, plan, first, extent, pieces});
  }
  const int64_t vectors = ceil_div(last - first, kLanes), strips = ceil_div(vectors, kMost);
  for (int64_t s = 0; s < strips; ++s) {
    const int64_t from = vectors * s / strips, count = vectors * (s + 1) / strips - from;
    const int64_t at = first + from * kLanes;
    const int64_t width = count * kLanes < last - at ? count * kLanes : last - at;
    if (pieces) found.find(plan, at, width);
    const auto go = [&]<int T>() __attribute__((always_inline)) {
      if constexpr (T <= kMost) {
        if (width == T * kLanes) {
          fn(Strip<T, Whole>{a, plan, at, {}, pieces});
        } else {
          // One vector alone would overlap what an earlier strip wrote: the same numbers again.
          const int64_t back = T == 1 ? kLanes - width : 0;
          if (pieces && back > 0) found.find(plan, at - back, kLanes);
          fn(Strip<T, Overlapping>{a, plan, at - back, {width + back - kLanes}, pieces});
        }
      }
    };
    switch (count) {
      case 1:
        go.template operator()<1>();
        break;
      case 2:
        go.template operator()<2>();
        break;
      case 3:
        go.template operator()<3>();
        break;
      case 4:
        go.template operator()<4>();
        break;
      default:
        go.template operator()<5>();
    }
  }
}

template <int R>
void conv2d_rows(const Conv2dArgs& a, const Conv2dPlan& plan, const Conv2dImage& image,
                 int64_t begin, int64_t end, int64_t first, int64_t last) {
  for_strips<kMostVectors<R>>(a, plan, first, last, [&](const auto& strip) {
    if (image.offsets) {
      strip.template rows<R>(image, ByTable{a.w.col_indices, image.offsets}, begin, end);
    } else if (image.room) {
      Conv2dImage packed = image;
      packed.x = image.room - strip.first;
      const int64_t width = strip.pack(image.x, image.room);
      strip.template rows<R>(packed, ByColumn{a.w.col_indices, width * 4}, begin, end);
    } else {
      strip.template rows<R>(image, ByColumn{a.w.col_indices, plan.channel * 4}, begin, end);
    }
  });
}

void conv2d_block(const Conv2dArgs& a, const Conv2dPlan& plan, const Conv2dImage& image,
                  int64_t begin, int64_t end, int64_t first, int64_t last) {
  if (a.w.block_rows % 4 == 0) {
    return conv2d_rows<4>(a, plan, image, begin, end, first, last);
  }
  if (a.w.block_rows % 2 == 0) {
    return conv2d_rows<2>(a, plan, image, begin, end, first, last);
  }
  conv2d_rows<1>(a, plan, image, begin, end, first, last);
}

// to[i] = from[i]; what is left over a vector overlaps the one before.
TAMIS_INLINE void copy_row(const float* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + simd::kLanes <= count; i += simd::kLanes) simd::store(simd::load(from + i), to + i);
  if (i == count) return;
  if (count < simd::kLanes) {
    return simd::store(simd::load(from, static_cast<int>(count)), to, static_cast<int>(count));
  }
  simd::store(simd::load(from + count - simd::kLanes), to + count - simd::kLanes);
}

// to[i] = from[i * step].
TAMIS_INLINE void copy_pixels(const float* from, int64_t step, int64_t count, float* to) {
  if (step == 1) return copy_row(from, count, to);
  if (step == 2) {  // for the compiler to see
    for (int64_t i = 0; i < count; ++i) to[i] = from[2 * i];
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = from[step * i];
  }
}

TAMIS_INLINE void clear(float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0;
}

// One phase of one channel: pixel (row * s + py - pad, column * s + px - pad). What lies outside
// the image becomes zero, unless it is known to be.
template <bool kClears>
TAMIS_INLINE void copy_phase(const Conv2dArgs& a, const Conv2dPlan& plan, const float* x,
                             int64_t py, int64_t px, float* out) {
  const Conv2dShape& s = a.shape;
  // Columns whose pixel is in the image: [inside, outside).
  const int64_t shift = px - s.pad_w;
  const auto clip = [&](int64_t c) { return c < 0 ? 0 : c < plan.pitch ? c : plan.pitch; };
  const int64_t inside = clip(shift < 0 ? ceil_div(-shift, s.stride_w) : 0);
  const int64_t outside = s.width > shift ? clip(ceil_div(s.width - shift, s.stride_w)) : inside;
  for (int64_t i = 0; i < plan.rows; ++i, out += plan.pitch) {
    const int64_t row = i * s.stride_h + py - s.pad_h;
    const bool there = row >= 0 && row < s.height && inside < outside;
    if (kClears) clear(out, there ? inside : plan.pitch);
    if (!there) continue;
    const int64_t column = inside * s.stride_w + shift;
    copy_pixels(x + row * a.x_row_stride + column * a.x_column_stride,
                s.stride_w * a.x_column_stride, outside - inside, out + inside);
    if (kClears) clear(out + outside, plan.pitch - outside);
  }
}

template <bool kClears>
TAMIS_INLINE void copy_channel(const Conv2dArgs& a, const Conv2dPlan& plan, const float* x,
                               float* out) {
  for (int64_t py = 0; py < plan.phases_h; ++py) {
    for (int64_t px = 0; px < plan.phases_w; ++px, out += plan.rows * plan.pitch) {
      copy_phase<kClears>(a, plan, x, py, px, out);
    }
  }
}

void conv2d_prepare(const Conv2dArgs& a, const Conv2dPlan& plan, const float* image, int64_t begin,
                    int64_t end, float* planes) {
  for (int64_t c = begin; c < end; ++c) {
    copy_channel<true>(a, plan, image + c * a.x_channel_stride, planes + c * plan.channel);
  }
}

// Channels [begin, end): planes of one channel at a time, which stay in cache, and its positions.
void conv2d_depthwise(const Conv2dArgs& a, const Conv2dPlan& plan, const Conv2dImage& image,
                      int64_t begin, int64_t end, int64_t first, int64_t last) {
  const int64_t taps = a.shape.kernel_h * a.shape.kernel_w;
  Conv2dPlan flat = plan;  // every position is an output
  flat.pitch = plan.out_w;
  if (plan.copies) clear(image.room, plan.channel);
  for (int64_t c = begin; c < end; ++c) {
    const float* x = image.x + c * a.x_channel_stride;
    float* y = image.y + c * plan.out_plane;
    float* to = plan.copies ? image.room + plan.channel : y;
    if (plan.copies) {
      copy_channel<false>(a, plan, x, image.room);
      x = image.room;
    }
    for_strips<kMostVectors<1>>(a, flat, first, last, [&](const auto& strip) {
      strip.template multiply<1>(a.depthwise + c * taps, 1, 0, taps, x, InOrder{image.offsets},
                                 a.bias ? a.bias + c : nullptr, to);
    });
    if (to == y) continue;
    for (int64_t row = 0; row < a.shape.out_h(); ++row) {
      copy_row(to + row * plan.pitch, plan.out_w, y + row * plan.out_w);
    }
  }
}

void mean_of_planes(const float* x, int64_t planes, int64_t stride, int64_t pixels, float* y) {
  for (int64_t i = 0; i < planes; ++i, x += stride) {
    simd::F32 sum = simd::zero();
    int64_t p = 0;
    for (; p + simd::kLanes <= pixels; p += simd::kLanes) sum = simd::add(sum, simd::load(x + p));
    if (p < pixels) sum = simd::add(sum, simd::load(x + p, static_cast<int>(pixels - p)));
    y[i] = simd::sum(sum) / static_cast<float>(pixels);
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_CONV2D_KERNELS(level)                                                                \
  void conv2d_prepare_##level(const Conv2dArgs& a, const Conv2dPlan& plan, const float* image,     \
                              int64_t begin, int64_t end, float* planes) {                         \
    conv2d_prepare(a, plan, image, begin, end, planes);                                            \
  }                                                                                                \
  void conv2d_csr_f32_##level(const Conv2dArgs& a, const Conv2dPlan& plan,                         \
                              const Conv2dImage& image, int64_t begin, int64_t end, int64_t first, \
                              int64_t last) {                                                      \
    conv2d_rows<1>(a, plan, image, begin, end, first, last);                                       \
  }                                                                                                \
  void conv2d_block_f32_##level(const Conv2dArgs& a, const Conv2dPlan& plan,                       \
                                const Conv2dImage& image, int64_t begin, int64_t end,              \
                                int64_t first, int64_t last) {                                     \
    conv2d_block(a, plan, image, begin, end, first, last);                                         \
  }                                                                                                \
  void conv2d_depthwise_f32_##level(const Conv2dArgs& a, const Conv2dPlan& plan,                   \
                                    const Conv2dImage& image, int64_t begin, int64_t end,          \
                                    int64_t first, int64_t last) {                                 \
    conv2d_depthwise(a, plan, image, begin, end, first, last);                                     \
  }                                                                                                \
  void plane_mean_f32_##level(const float* x, int64_t planes, int64_t stride, int64_t pixels,      \
                              float* y) {                                                          \
    mean_of_planes(x, planes, stride, pixels, y);                                                  \
  }
