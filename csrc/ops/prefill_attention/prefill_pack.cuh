// Keys and values of listed tokens one after another, so that tiles of them are boxes: once for all
// queries and heads of a group. Up to the end of a list's last tile zeros follow, as a weight of
// zero would not hide what is no number. Grid [parts of the list, batches and KV heads].
#pragma once

#include "base/cuda/dev.h"
#include "ops/prefill_attention/prefill_limits.cuh"
#include "ops/prefill_attention/prefill_params.h"

namespace tamis {

TAMIS_DEVICE void prefill_pack(const PrefillPackParams& g) {
  const PrefillParams& p = g.p;
  const auto y = static_cast<int32_t>(dev::block_index_y());
  const int32_t batch = y / g.kv_heads, head = y % g.kv_heads;
  const int32_t chunks = g.row_bytes / 16, rows = kPrefillPackThreads / chunks;  // of a pass
  const auto thread = static_cast<int32_t>(dev::thread_index());
  const int32_t chunk = thread % chunks;
  const int32_t first = kPrefillPackRows * static_cast<int32_t>(dev::block_index_x());
  dev::wait_for_previous();
  dev::allow_next();
  int32_t count = p.column_count ? dev::load_global(p.column_count + batch) : p.column_stride;
  count = clamped(count, 0, p.tokens > 0 ? p.column_stride : 0);
  int32_t end = (count + kPrefillGroupKeys - 1) / kPrefillGroupKeys * kPrefillGroupKeys;
  end = end < p.column_stride ? end : p.column_stride;
  const uint8_t* keys = p.keys + batch * p.key_batch + head * p.key_head + 16 * chunk;
  const uint8_t* values = p.values + batch * p.value_batch + head * p.value_head + 16 * chunk;
  const int64_t row_bytes = g.row_bytes, all = int64_t{p.column_stride} * row_bytes;
  uint8_t* to_keys = g.keys + y * all + 16 * chunk;
  uint8_t* to_values = g.values + y * all + 16 * chunk;
#pragma unroll 4
  for (int32_t i = first + thread / chunks; i < first + kPrefillPackRows; i += rows) {
    if (i >= end) break;
    dev::Word4 key{}, value{};
    if (i < count) {
      const int64_t token = clamped(
          dev::load_global(p.columns + int64_t{batch} * p.column_stride + i), 0, p.tokens - 1);
      key = dev::load_global(reinterpret_cast<const dev::Word4*>(keys + token * p.key_token));
      value = dev::load_global(reinterpret_cast<const dev::Word4*>(values + token * p.value_token));
    }
    *reinterpret_cast<dev::Word4*>(to_keys + i * row_bytes) = key;
    *reinterpret_cast<dev::Word4*>(to_values + i * row_bytes) = value;
  }
}

}  // namespace tamis
