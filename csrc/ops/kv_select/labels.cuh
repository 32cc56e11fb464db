// kv_label records of new tokens, with the arithmetic of format/kv_label.cc so that every byte is
// the same. Tile: eight lanes a token, each a channel of every word, so that a token's channels are
// on their way at once: a decode step waits for one, twice the latency of a load.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_quantize/kv_page.cuh"
#include "ops/kv_select/estimate_params.h"
#include "ops/kv_select/kv_select_cuda.h"

namespace tamis {

inline constexpr uint32_t kLabelLanes = 8;  // of a token
inline constexpr int64_t kLabelBlockTokens = kEstimateThreads / kLabelLanes;

struct LabelParams {
  KvAppendLabelsArgs args;
  int64_t scale_at, min_at, record_bytes;
};

inline LabelParams label_params(const KvAppendLabelsArgs& a) {
  return {a, a.labels.scale(), a.labels.min(), a.labels.bytes()};
}

// Blocks over the tokens of whole records from the first token's on.
inline int64_t label_blocks(const KvAppendLabelsArgs& a) {
  const int64_t tokens = a.first % kLabelTokens + a.count + kLabelTokens - 1;
  return (tokens + kLabelBlockTokens - 1) / kLabelBlockTokens;
}

// A lane's channels of a key, one of each word, and 0 for words that are not there.
template <int kWords>
TAMIS_DEVICE void load_labelled(const KvAppendLabelsArgs& a, int64_t row, const int32_t* ids,
                                int32_t words, float (&x)[kWords]) {
  int32_t id[kWords];
  uint32_t bits[kWords] = {};
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    id[w] = w < words ? dev::load_global(ids + static_cast<int>(kLabelLanes) * w) : 0;
    id[w] = id[w] < a.head_dim ? id[w] : 0;
  }
  const bool whole = a.keys_dtype == DType::f32;
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    if (w >= words) break;  // the same in every lane
    if (whole) {
      bits[w] = dev::bits_of(dev::load_global(static_cast<const float*>(a.keys) + row + id[w]));
    } else {
      bits[w] = dev::load_global(static_cast<const uint16_t*>(a.keys) + row + id[w]);
    }
  }
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const auto half = static_cast<uint16_t>(bits[w]);
    x[w] = kv_clamp(whole                         ? dev::float_of(bits[w])
                    : a.keys_dtype == DType::bf16 ? dev::bf16_to_f32(half)
                                                  : dev::f16_to_f32(half));
  }
}

// Grid [label_blocks, heads] of kEstimateThreads. kWords: at least as many as a label has.
template <int kWords>
TAMIS_DEVICE void append_labels(const LabelParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const KvAppendLabelsArgs& a = p.args;
  const int64_t head = dev::block_index_y(), batch = head / a.kv_heads, g = head % a.kv_heads;
  const uint32_t lane = dev::thread_index() % kLabelLanes;
  const int64_t start = a.first / kLabelTokens * kLabelTokens, last = a.first + a.count;
  const int64_t token =
      start + kLabelBlockTokens * int64_t{dev::block_index_x()} + dev::thread_index() / kLabelLanes;
  const bool counts = token >= a.first && token < last;
  // A record's slots past the last token are zeros, as those that come later expect.
  const bool clears =
      token >= last && token < (last + kLabelTokens - 1) / kLabelTokens * kLabelTokens;
  const int32_t r = a.labels.channels, words = r / 8;
  const int64_t row = batch * a.key_batch_stride + g * a.key_head_stride +
                      (counts ? token - a.first : 0) * a.key_token_stride;
  float x[kWords];
  load_labelled(a, row, a.channels + g * r + lane, words, x);
  float low = x[0], high = low;
#pragma unroll
  for (int w = 1; w < kWords; ++w) {
    if (w >= words) break;
    low = x[w] < low ? x[w] : low;
    high = x[w] > high ? x[w] : high;
  }
#pragma unroll
  for (int mask = 1; mask < static_cast<int>(kLabelLanes); mask *= 2) {
    const float other_low = dev::shuffle_xor(low, mask), other_high = dev::shuffle_xor(high, mask);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  const KvGroupCodes group(low, high, 15.0f);
  uint8_t* record = static_cast<uint8_t*>(a.records) + batch * a.batch_stride_bytes +
                    g * a.head_stride_bytes + token / kLabelTokens * p.record_bytes;
  const int64_t slot = token % kLabelTokens;
  const uint32_t bit = lane % 4 * 8 + lane / 4 * 4;  // code_bit
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    if (w >= words) break;
    const float steps = dev::mul(dev::add(x[w], -group.origin), group.inverse);
    const float rounded = dev::add(steps < 15.0f ? steps : 15.0f, 0.5f);
    uint32_t word = static_cast<uint32_t>(rounded) << bit;
#pragma unroll
    for (uint32_t mask = 1; mask < kLabelLanes; mask *= 2) {
      word |= static_cast<uint32_t>(dev::shuffle(
          static_cast<int32_t>(word), static_cast<int>((dev::thread_index() ^ mask) % 32)));
    }
    if ((counts || clears) && lane == static_cast<uint32_t>(w) % kLabelLanes) {
      reinterpret_cast<uint32_t*>(record)[w * kLabelTokens + slot] = counts ? word : 0;
    }
  }
  if ((counts || clears) && lane == 0) {
    reinterpret_cast<uint16_t*>(record + p.scale_at)[slot] = counts ? group.scale : 0;
    reinterpret_cast<uint16_t*>(record + p.min_at)[slot] = counts ? group.min : 0;
  }
}

// Element c of a row of 128 elements of 16 bits, or of 64 where it is not wide. Lanes bring four or
// two each, so that the row and c are on their way at once: an element behind c is a second
// journey.
TAMIS_DEVICE float element_of(DType type, bool wide, const void* row, int32_t c) {
  const uint32_t lane = dev::thread_index() % 32;
  dev::Word2 held{0, 0};
  if (wide) {
    held = dev::load_global(static_cast<const dev::Word2*>(row) + lane);
  } else {
    held.x = dev::load_global(static_cast<const uint32_t*>(row) + lane);
  }
  const int32_t holder = wide ? c / 4 : c / 2;
  const int32_t low = dev::shuffle(static_cast<int32_t>(held.x), holder);
  const int32_t high = dev::shuffle(static_cast<int32_t>(held.y), holder);
  const auto pair = static_cast<uint32_t>(!wide || c % 4 < 2 ? low : high);
  const auto bits = static_cast<uint16_t>(pair >> (16 * (c % 2)));
  return type == DType::bf16 ? dev::bf16_to_f32(bits) : dev::f16_to_f32(bits);
}

// The label of one token by a warp, a lane a channel of at most 32, as append_labels writes it: for
// a launch that reads it next. key: a row of element_of; record: the token's.
TAMIS_DEVICE void write_label(const EstimateParams& e, DType type, bool wide, const void* key,
                              int32_t kv_head, int32_t token, uint8_t* record) {
  const KvUnits& units = e.args.units;
  const auto lane = static_cast<int32_t>(dev::thread_index() % 32);
  const int32_t r = units.labels.channels, slot = token % kLabelTokens;
  // Lanes without a channel have the first one's.
  const int32_t c = dev::load_global(units.channels + kv_head * r + (lane < r ? lane : 0));
  const float x = kv_clamp(element_of(type, wide, key, c));
  float low = x, high = x;
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2) {
    const float other_low = dev::shuffle_xor(low, mask), other_high = dev::shuffle_xor(high, mask);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  const KvGroupCodes group(low, high, 15.0f);
  const float steps = dev::mul(dev::add(x, -group.origin), group.inverse);
  const float rounded = dev::add(steps < 15.0f ? steps : 15.0f, 0.5f);
  const int32_t bit = lane % 4 * 8 + lane % 8 / 4 * 4;  // code_bit
  uint32_t word = static_cast<uint32_t>(rounded) << bit;
#pragma unroll
  for (int mask = 1; mask < static_cast<int>(kLabelLanes); mask *= 2) {
    word |= static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(word), (lane ^ mask) % 32));
  }
  auto* words = reinterpret_cast<uint32_t*>(record);
  auto* scales = reinterpret_cast<uint16_t*>(record + e.label_scale);
  auto* mins = reinterpret_cast<uint16_t*>(record + e.label_min);
  if (lane < r && lane % static_cast<int32_t>(kLabelLanes) == 0) {
    words[lane / static_cast<int32_t>(kLabelLanes) * kLabelTokens + slot] = word;
  }
  if (lane == 0) {
    scales[slot] = group.scale;
    mins[slot] = group.min;
  }
  if (lane > slot && lane < kLabelTokens) {
    for (int32_t w = 0; w < r / 8; ++w) words[w * kLabelTokens + lane] = 0;
    scales[lane] = 0;
    mins[lane] = 0;
  }
}

}  // namespace tamis
