// out[r,t] = step[r] * scale[t] * sum_c q8[r,c] * code[t,c]  +  sum[r] * min[t] over kv_label
// records: integer products, so every ISA has the same bits but for the last two roundings.
// Tile: one record, tokens in lanes, all rows; a word of 8 codes is two operands of four bytes.
// Floor: 20 bytes a token at r = 32, of 512 that its key and value take.
// Needs: nothing.   Tail: scores past `end` are computed and dropped.
//
// Included after a base/simd/lanes_<isa>.h. Unit: Sum, zero(), dot(sum, words, q8 of 8 channels),
// to_f32(sum).
#pragma once

#include "ops/kv_select/kv_select.h"

namespace tamis {
namespace {

// The same place some records on, into L2, as for rows.
TAMIS_INLINE void fetch_ahead(const void* at) {
#if defined(__x86_64__)
  constexpr int64_t kBytes = 4096;
  __builtin_prefetch(static_cast<const uint8_t*>(at) + kBytes, 0, 2);
#endif
}

template <class Unit, int R>
void score_labels(const KvScorePart& a) {
  const int64_t words = a.labels.channels / 8, bytes = a.labels.bytes();
  for (int64_t block = a.begin / kLabelTokens * kLabelTokens; block < a.end;
       block += kLabelTokens) {
    const auto* record = static_cast<const uint8_t*>(a.x) + block / kLabelTokens * bytes;
    alignas(64) float out[R][kLabelTokens];
    for (int lane = 0; lane < kLabelTokens; lane += simd::kLanes) {
      typename Unit::Sum sum[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r] = Unit::zero();
      for (int64_t w = 0; w < words; ++w) {
        const auto codes = Unit::split(record + 4 * (w * kLabelTokens + lane));
        fetch_ahead(record + 4 * (w * kLabelTokens + lane));
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          sum[r] = Unit::dot(sum[r], codes, a.q8 + r * a.labels.channels + 8 * w);
        }
      }
      const auto* scale = reinterpret_cast<const F16*>(record + a.labels.scale()) + lane;
      const auto* min = reinterpret_cast<const F16*>(record + a.labels.min()) + lane;
      const lanes::F32 step = simd::load(scale), origin = simd::load(min);
      fetch_ahead(scale);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const lanes::F32 product =
            lanes::mul(lanes::mul(step, lanes::splat(a.step[r])), Unit::to_f32(sum[r]));
        lanes::store(simd::fma(origin, lanes::splat(a.sum[r]), product), out[r] + lane);
      }
    }
    const int64_t first = block < a.begin ? a.begin - block : 0;
    const int64_t last = a.end - block < kLabelTokens ? a.end - block : kLabelTokens;
    for (int r = 0; r < R; ++r) {
      float* to = a.out + r * a.out_stride + block - a.begin;
      if (last - first == kLabelTokens) {
        __builtin_memcpy(to, out[r], sizeof out[r]);
      } else {
        for (int64_t i = first; i < last; ++i) to[i] = out[r][i];
      }
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_SCORE_LABELS(Unit, level)                         \
  void kv_select_labels_f32_f32_##level(const KvScorePart& a) { \
    switch (a.rows) {                                           \
      case 1:                                                   \
        return score_labels<Unit, 1>(a);                        \
      case 2:                                                   \
        return score_labels<Unit, 2>(a);                        \
      case 3:                                                   \
        return score_labels<Unit, 3>(a);                        \
      default:                                                  \
        return score_labels<Unit, kSelectRows>(a);              \
    }                                                           \
  }
