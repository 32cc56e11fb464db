// What becomes of scores: sums of exponentials, the largest over rows, sums of weights, and the two
// passes of an exact choice. Lanes are units.
// Tail: the last n % lanes units one by one (a copy in a vector of -inf).
//
// Included after a base/simd/lanes_<isa>.h.
#pragma once

#include "ops/kv_select/kv_select.h"

namespace tamis {
namespace {

inline constexpr float kNever = -__builtin_inff();

// s[i .. n) in the first lanes, -inf in the others.
TAMIS_INLINE lanes::F32 load_some(const float* s, int64_t count) {
  alignas(64) float copy[simd::kLanes];
  for (int64_t i = 0; i < simd::kLanes; ++i) copy[i] = i < count ? s[i] : kNever;
  return simd::load(copy);
}

// Calls fn(vector of s, i, count of its lanes that exist).
template <class Fn>
TAMIS_INLINE void for_vectors(const float* s, int64_t n, const Fn& fn) {
  int64_t i = 0;
  for (; i + simd::kLanes <= n; i += simd::kLanes) fn(simd::load(s + i), i, int64_t{simd::kLanes});
  if (i < n) fn(load_some(s + i, n - i), i, n - i);
}

TAMIS_INLINE void put_some(lanes::F32 v, int64_t count, float* out) {
  if (count == simd::kLanes) return lanes::store(v, out);
  alignas(64) float copy[simd::kLanes];
  lanes::store(v, copy);
  for (int64_t i = 0; i < count; ++i) out[i] = copy[i];
}

void stats(const float* s, int64_t n, float* largest, float* sum) {
  lanes::F32 most = lanes::splat(kNever);
  for_vectors(s, n, [&](lanes::F32 v, int64_t, int64_t) __attribute__((always_inline)) {
    most = lanes::max(v, most);
  });
  *largest = lanes::max_of(most);
  const lanes::F32 shift = lanes::splat(*largest == kNever ? 0.0f : *largest);
  lanes::F32 total = simd::zero();
  for_vectors(s, n, [&](lanes::F32 v, int64_t, int64_t) __attribute__((always_inline)) {
    total = simd::add(total, lanes::exp(lanes::sub(v, shift)));
  });
  *sum = simd::sum(total);
}

void largest_of(const float* s, int64_t stride, int64_t rows, const float* shift, int64_t n,
                float* out) {
  for_vectors(s, n, [&](lanes::F32 v, int64_t i, int64_t count) __attribute__((always_inline)) {
    lanes::F32 most = lanes::sub(v, lanes::splat(shift[0]));
    for (int64_t r = 1; r < rows; ++r) {
      const float* at = s + r * stride + i;
      const lanes::F32 x = count == simd::kLanes ? simd::load(at) : load_some(at, count);
      most = lanes::max(lanes::sub(x, lanes::splat(shift[r])), most);
    }
    put_some(most, count, out + i);
  });
}

void weights_of(const float* s, int64_t stride, int64_t rows, const float* shift, float factor,
                int64_t n, float* out) {
  for_vectors(s, n, [&](lanes::F32 v, int64_t i, int64_t count) __attribute__((always_inline)) {
    lanes::F32 sum = lanes::exp(lanes::sub(v, lanes::splat(shift[0])));
    for (int64_t r = 1; r < rows; ++r) {
      const float* at = s + r * stride + i;
      const lanes::F32 x = count == simd::kLanes ? simd::load(at) : load_some(at, count);
      sum = simd::add(sum, lanes::exp(lanes::sub(x, lanes::splat(shift[r]))));
    }
    const lanes::F32 before =
        count == simd::kLanes ? simd::load(out + i) : load_some(out + i, count);
    put_some(simd::fma(sum, lanes::splat(factor), before), count, out + i);
  });
}

int64_t between(const float* s, int64_t n, float low, float high, float* out, int64_t* above) {
  int64_t count = 0, more = 0;
  const lanes::F32 least = lanes::splat(low), most = lanes::splat(high);
  for_vectors(s, n, [&](lanes::F32 v, int64_t i, int64_t there) __attribute__((always_inline)) {
    const uint32_t exists = there == 32 ? ~0u : (1u << there) - 1;
    const uint32_t past = lanes::above(v, most) & exists;
    uint32_t in = lanes::at_least(v, least) & exists & ~past;
    more += lanes::ones(past);
    for (; in; in &= in - 1) out[count++] = s[i + __builtin_ctz(in)];
  });
  *above = more;
  return count;
}

int64_t count_of(const float* s, int64_t n, float threshold) {
  int64_t count = 0;
  const lanes::F32 t = lanes::splat(threshold);
  for_vectors(s, n, [&](lanes::F32 v, int64_t, int64_t there) __attribute__((always_inline)) {
    const uint32_t exists = there == 32 ? ~0u : (1u << there) - 1;
    count += lanes::ones(lanes::above(v, t) & exists);
  });
  return count;
}

int64_t above_of(const float* s, int64_t n, float threshold, int64_t ties, int32_t first,
                 int32_t* out) {
  int64_t count = 0;
  const lanes::F32 t = lanes::splat(threshold);
  for_vectors(s, n, [&](lanes::F32 v, int64_t i, int64_t there) __attribute__((always_inline)) {
    const uint32_t exists = there == 32 ? ~0u : (1u << there) - 1;
    const uint32_t past = lanes::above(v, t) & exists;
    uint32_t in = lanes::at_least(v, t) & exists;
    for (; in; in &= in - 1) {
      const int lane = __builtin_ctz(in);
      if (!(past >> lane & 1) && ties-- <= 0) continue;
      out[count++] = first + static_cast<int32_t>(i) + lane;
    }
  });
  return count;
}

}  // namespace
}  // namespace tamis

#define TAMIS_KV_REDUCE_KERNELS(level)                  \
  extern const KvReduceRow kv_select_reduce_##level = { \
      "kv_select_reduce_" #level,                       \
      isa::level,                                       \
      &stats,                                           \
      &largest_of,                                      \
      &weights_of,                                      \
      &between,                                         \
      &count_of,                                        \
      &above_of,                                        \
  };
