// Rows of spmm_t and sddmm over kGradTokens tokens in lanes.
// Tile: all tokens of dy in registers (4 of AVX-512's, 8 of AVX2's), kSums weights at a time.
// spmm_t loads and stores as many vectors as it multiplies, which is what bounds it; sddmm only
// loads, and adds several sums across lanes at once. Needs: columns ascending, so different. Tail:
// weights one by one.
//
// Included after a base/simd/lanes_<isa>.h.
#pragma once

#include "ops/spmm_grad/spmm_grad.h"

namespace tamis {
namespace {

inline constexpr int kVectors = static_cast<int>(kGradTokens) / simd::kLanes;
inline constexpr int kSums = simd::kLanes == 16 ? 4 : simd::kLanes == 1 ? 1 : 2;  // of store_sums

TAMIS_INLINE void spmm_t_row(const int32_t* columns, const float* values, int64_t count,
                             const float* dy, float* dx) {
  lanes::F32 d[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) d[v] = simd::load(dy + v * simd::kLanes);
  for (int64_t i = 0; i < count; ++i) {
    float* to = dx + columns[i] * kGradTokens;
    const lanes::F32 w = lanes::splat(values[i]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      float* lane = to + v * simd::kLanes;
      lanes::store(simd::fma(w, d[v], simd::load(lane)), lane);
    }
  }
}

TAMIS_INLINE void sddmm_row(const int32_t* columns, int64_t count, const float* dy, const float* x,
                            float* sums) {
  lanes::F32 d[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) d[v] = simd::load(dy + v * simd::kLanes);
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    lanes::F32 sum[kSums];
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) {
      const float* from = x + columns[i + s] * kGradTokens;
      sum[s] = lanes::mul(d[0], simd::load(from));
#pragma GCC unroll 8
      for (int v = 1; v < kVectors; ++v) {
        sum[s] = simd::fma(d[v], simd::load(from + v * simd::kLanes), sum[s]);
      }
    }
    float found[kSums];
    lanes::store_sums(sum, found);
    for (int s = 0; s < kSums; ++s) sums[i + s] += found[s];
  }
  for (; i < count; ++i) {
    const float* from = x + columns[i] * kGradTokens;
    lanes::F32 sum = lanes::mul(d[0], simd::load(from));
#pragma GCC unroll 8
    for (int v = 1; v < kVectors; ++v) {
      sum = simd::fma(d[v], simd::load(from + v * simd::kLanes), sum);
    }
    sums[i] += simd::sum(sum);
  }
}

}  // namespace
}  // namespace tamis
