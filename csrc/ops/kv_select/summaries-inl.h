// Bounds, or the mean and the likeness to it, of whole pages of keys [tokens, d] of f32, f16 or
// bf16. Channels in lanes, two vectors at a time down a page, which stays in L1 for the means'
// second pass. Needs: d a multiple of 16, rows of contiguous elements.
//
// Included after a base/simd/lanes_<isa>.h.
#pragma once

#include "ops/kv_select/kv_select.h"

namespace tamis {
namespace {

template <class T>
TAMIS_INLINE void bounds_of(const T* page, const KvSummaryPart& a, T* out) {
  for (int64_t c = 0; c < a.head_dim; c += simd::kLanes) {
    lanes::F32 low = simd::load(page + c), high = low;
    for (int64_t t = 1; t < a.page; ++t) {
      const lanes::F32 key = simd::load(page + t * a.token_stride + c);
      low = lanes::min(low, key);
      high = lanes::max(high, key);
    }
    simd::store(low, out + c, simd::kLanes);
    simd::store(high, out + a.head_dim + c, simd::kLanes);
  }
}

// Writes the mean and returns the smallest cosine of a key and the mean before rounding.
template <class T>
TAMIS_INLINE float mean_of(const T* page, const KvSummaryPart& a, T* out) {
  alignas(64) float mean[kMaxWidth / 2];
  const lanes::F32 share = lanes::splat(1.0f / static_cast<float>(a.page));
  lanes::F32 squares = simd::zero();
  for (int64_t c = 0; c < a.head_dim; c += simd::kLanes) {
    lanes::F32 sum = simd::load(page + c);
    for (int64_t t = 1; t < a.page; ++t) {
      sum = simd::add(sum, simd::load(page + t * a.token_stride + c));
    }
    sum = lanes::mul(sum, share);
    squares = simd::fma(sum, sum, squares);
    lanes::store(sum, mean + c);
    simd::store(sum, out + c, simd::kLanes);
  }
  constexpr float kLeast = 1e-8f;  // a norm below it counts as this
  const float size = __builtin_sqrtf(simd::sum(squares));
  float alike = 1.0f;
  for (int64_t t = 0; t < a.page; ++t) {
    lanes::F32 dot = simd::zero(), norm = simd::zero();
    for (int64_t c = 0; c < a.head_dim; c += simd::kLanes) {
      const lanes::F32 key = simd::load(page + t * a.token_stride + c);
      dot = simd::fma(key, simd::load(mean + c), dot);
      norm = simd::fma(key, key, norm);
    }
    const float length = __builtin_sqrtf(simd::sum(norm));
    const float cosine =
        simd::sum(dot) / ((length > kLeast ? length : kLeast) * (size > kLeast ? size : kLeast));
    alike = cosine < alike ? cosine : alike;
  }
  return alike;
}

template <class T>
void summarize(const KvSummaryPart& a) {
  for (int64_t p = 0; p < a.pages; ++p) {
    const T* page = static_cast<const T*>(a.keys) + p * a.page * a.token_stride;
    if (a.kind == KvSummary::bounds) {
      bounds_of(page, a, static_cast<T*>(a.out) + p * 2 * a.head_dim);
    } else {
      a.alike[p] = mean_of(page, a, static_cast<T*>(a.out) + p * a.head_dim);
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_SUMMARIES(level)                                  \
  void kv_select_summary_f32_##level(const KvSummaryPart& a) {  \
    summarize<float>(a);                                        \
  }                                                             \
  void kv_select_summary_f16_##level(const KvSummaryPart& a) {  \
    summarize<F16>(a);                                          \
  }                                                             \
  void kv_select_summary_bf16_##level(const KvSummaryPart& a) { \
    summarize<BF16>(a);                                         \
  }
