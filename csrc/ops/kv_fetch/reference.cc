// kv_fetch by sorting slots, in plain C++.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "ops/kv_fetch/kv_fetch.h"

namespace tamis {

Status kv_fetch_reference(const KvFetchArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_fetch(a));
  for (int64_t h = 0; h < a.batch * a.kv_heads; ++h) {
    const int32_t first = a.begin ? a.begin[h] : 0, clock = ++a.clock[h];
    int32_t *slot_of = a.slot_of + h * a.units, *unit_in = a.unit_in + h * a.slots;
    int32_t* stamp = a.stamp + h * a.slots;
    std::vector<int32_t> tokens;  // that count
    std::vector<int32_t> missing;
    for (int64_t i = 0; i < a.count[h]; ++i) {
      const int32_t token = a.index[h * a.index_stride + i];
      if (token >= first) tokens.push_back(token);
    }
    int64_t used = 0;
    int32_t last = -1;
    for (const int32_t token : tokens) {
      const auto unit = static_cast<int32_t>(token / a.unit);
      if (unit == last) continue;
      last = unit;
      ++used;
      if (slot_of[unit] >= 0) {
        stamp[slot_of[unit]] = clock;
      } else {
        missing.push_back(unit);
      }
    }
    std::vector<int64_t> order(static_cast<size_t>(a.slots));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) {
      return std::min(clock - stamp[x], kFetchAges - 1) >
             std::min(clock - stamp[y], kFetchAges - 1);
    });
    order.resize(missing.size());
    std::sort(order.begin(), order.end());
    for (size_t i = 0; i < missing.size(); ++i) {
      const int64_t slot = order[i], unit = missing[i];
      if (unit_in[slot] >= 0) slot_of[unit_in[slot]] = -1;
      slot_of[unit] = static_cast<int32_t>(slot);
      unit_in[slot] = missing[i];
      stamp[slot] = clock;
      int32_t* task = a.todo + 2 * (h * (a.index_stride / a.unit) + static_cast<int64_t>(i));
      task[0] = missing[i];
      task[1] = static_cast<int32_t>(slot);
      for (int64_t t = 0; a.far_keys && t < a.unit; ++t) {
        const int64_t to = ((h * a.slots + slot) * a.unit + t) * a.row_bytes;
        const int64_t b = h / a.kv_heads, g = h % a.kv_heads, token = unit * a.unit + t;
        std::memcpy(static_cast<uint8_t*>(a.near_keys) + to,
                    static_cast<const uint8_t*>(a.far_keys) + b * a.key_batch_stride +
                        g * a.key_head_stride + token * a.key_token_stride,
                    static_cast<size_t>(a.row_bytes));
        std::memcpy(static_cast<uint8_t*>(a.near_values) + to,
                    static_cast<const uint8_t*>(a.far_values) + b * a.value_batch_stride +
                        g * a.value_head_stride + token * a.value_token_stride,
                    static_cast<size_t>(a.row_bytes));
      }
    }
    for (size_t i = 0; i < tokens.size(); ++i) {
      a.near[h * a.index_stride + static_cast<int64_t>(i)] =
          static_cast<int32_t>(slot_of[tokens[i] / a.unit] * a.unit + tokens[i] % a.unit);
    }
    a.near_count[h] = static_cast<int32_t>(tokens.size());
    a.lacking[h] = static_cast<int32_t>(missing.size());
    a.reads[2 * h] += used;
    a.reads[2 * h + 1] += used - static_cast<int64_t>(missing.size());
  }
  return {};
}

}  // namespace tamis
