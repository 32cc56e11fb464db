// Rows of a groupq weight as its kernels read them: which groups are stored, and with what scales.
//
// A level supplies, in namespace `decode`:
//   put_offsets(bits, first, step, out): first + j * step of every set bit j, ascending; returns
//   how many. It may write kLanes entries past them. put_scales(pairs, n, scale, offset): scale and
//   -scale * zero of n pairs; writes no more than the next multiple of kLanes.
#pragma once

#include "base/simd/element.h"
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

// Groups whose columns are decoded at a time; one mask word more than a kernel unrolls.
inline constexpr int kMostGroups = 1024;
inline constexpr int kGroupsPast = 64;

// The stored groups of up to kMostGroups columns' groups of a row.
struct StoredGroups {
  alignas(64) uint32_t x[kMostGroups + kGroupsPast];   // where x has their columns, in bytes
  alignas(64) float scale[kMostGroups + kGroupsPast];  // w = scale * code + offset
  alignas(64) float offset[kMostGroups + kGroupsPast];
  int64_t count;
};

// Groups [first, first + kMostGroups) of a row, the first stored one being group `at` of all.
// step: bytes that x has for a group's columns.
template <class Decode>
TAMIS_INLINE void decode_groups(const MatrixView& w, int64_t row, int64_t first, int64_t at,
                                uint32_t step, StoredGroups& out) {
  const int64_t groups = w.cols / w.group_size, words = mask_words(groups);
  const int64_t last = first + kMostGroups < groups ? first + kMostGroups : groups;
  int64_t count = 0;
  for (int64_t g = first; g < last; g += 64) {
    const uint64_t bits = w.mask[row * words + g / 64];
    count +=
        Decode::put_offsets(bits, static_cast<uint32_t>(g - first) * step, step, out.x + count);
  }
  Decode::put_scales(w.group_scales + 2 * at, count, out.scale, out.offset);
  out.count = count;
}

// One output of one token, plus its bias.
template <class X>
TAMIS_INLINE void store_output(const SpmmArgs& a, float v, int64_t row, int64_t token) {
  const auto* bias = static_cast<const X*>(a.bias);
  if (bias) v += simd::to_f32(bias[row]);
  simd::store(v, static_cast<X*>(a.y) + token * a.y_stride + row);
}
TAMIS_INLINE void store_output(const SpmmArgs& a, float v, int64_t row, int64_t token) {
  switch (a.x_dtype) {
    case DType::f32:
      return store_output<float>(a, v, row, token);
    case DType::f16:
      return store_output<F16>(a, v, row, token);
    default:
      return store_output<BF16>(a, v, row, token);
  }
}

}  // namespace
}  // namespace tamis
