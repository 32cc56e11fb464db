// kv_label records of new tokens, a thread a token, with the arithmetic of format/kv_label.cc so
// that every byte is the same.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_quantize/kv_page.cuh"
#include "ops/kv_select/kv_select_cuda.h"

namespace tamis {

struct LabelParams {
  KvAppendLabelsArgs args;
  int64_t scale_at, min_at, record_bytes;
};

inline LabelParams label_params(const KvAppendLabelsArgs& a) {
  return {a, a.labels.scale(), a.labels.min(), a.labels.bytes()};
}

// Grid [blocks over tokens from the first one's record on, heads] of kEstimateThreads.
TAMIS_DEVICE void append_labels(const LabelParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const KvAppendLabelsArgs& a = p.args;
  const int64_t head = dev::block_index_y(), batch = head / a.kv_heads, g = head % a.kv_heads;
  const int64_t start = a.first / kLabelTokens * kLabelTokens;
  const int64_t token =
      start + int64_t{dev::block_index_x()} * kEstimateThreads + dev::thread_index();
  const int64_t last = a.first + a.count;
  // A record's slots past the last token are zeros, as those that come later expect.
  if (token < a.first || token >= (last + kLabelTokens - 1) / kLabelTokens * kLabelTokens) return;
  uint8_t* record = static_cast<uint8_t*>(a.records) + batch * a.batch_stride_bytes +
                    g * a.head_stride_bytes + token / kLabelTokens * p.record_bytes;
  const int64_t lane = token % kLabelTokens;
  auto* words = reinterpret_cast<uint32_t*>(record) + lane;
  auto* scale = reinterpret_cast<uint16_t*>(record + p.scale_at) + lane;
  auto* min = reinterpret_cast<uint16_t*>(record + p.min_at) + lane;
  const int32_t r = a.labels.channels;
  if (token >= last) {
    for (int32_t w = 0; w < r / 8; ++w) words[w * kLabelTokens] = 0;
    *scale = *min = 0;
    return;
  }
  const int64_t row =
      batch * a.key_batch_stride + g * a.key_head_stride + (token - a.first) * a.key_token_stride;
  const int32_t* ids = a.channels + g * r;
  const auto channel = [&](int32_t c) {
    const int64_t id = dev::load_global(ids + c);
    return kv_clamp(load_float(a.keys_dtype, a.keys, row + (id < a.head_dim ? id : 0)));
  };
  float low = channel(0), high = low;
  for (int32_t c = 1; c < r; ++c) {
    const float x = channel(c);
    low = x < low ? x : low;
    high = x > high ? x : high;
  }
  const KvGroupCodes group(low, high, 15.0f);
  *scale = group.scale;
  *min = group.min;
  for (int32_t w = 0; w < r / 8; ++w) {
    uint32_t word = 0;
    for (int32_t j = 0; j < 8; ++j) {
      const float steps = dev::mul(dev::add(channel(8 * w + j), -group.origin), group.inverse);
      const float rounded = dev::add(steps < 15.0f ? steps : 15.0f, 0.5f);
      word |= static_cast<uint32_t>(rounded) << (j % 4 * 8 + j / 4 * 4);
    }
    words[w * kLabelTokens] = word;
  }
}

}  // namespace tamis
