// kv_fetch on the processor: a head a task.
#include "ops/kv_fetch/kv_fetch.h"

#include <algorithm>
#include <cstring>

#include "base/parallel.h"

namespace tamis {
namespace {

struct Head {
  const KvFetchArgs& a;
  int64_t head;

  int32_t first() const { return a.begin ? a.begin[head] : 0; }
  const int32_t* index() const { return a.index + head * a.index_stride; }
  int32_t* slot_of() const { return a.slot_of + head * a.units; }
  int32_t* unit_in() const { return a.unit_in + head * a.slots; }
  int32_t* stamp() const { return a.stamp + head * a.slots; }
  int32_t* todo() const { return a.todo + 2 * head * (a.index_stride / a.unit); }
  int64_t listed() const { return std::clamp<int64_t>(a.count[head], 0, a.index_stride) / a.unit; }
  // Tokens of listed unit i that count, its last ones.
  int64_t counted(int64_t i) const {
    const int64_t token = index()[i * a.unit];
    return std::clamp<int64_t>(token + a.unit - first(), 0, a.unit);
  }
};

int32_t age(int32_t clock, int32_t stamp) {
  return std::min(clock - stamp, kFetchAges - 1);
}

void replace_oldest(const Head& h, int32_t clock, int64_t lacking) {
  const KvFetchArgs& a = h.a;
  int64_t counts[kFetchAges] = {};
  for (int64_t s = 0; s < a.slots; ++s) ++counts[age(clock, h.stamp()[s])];
  int32_t oldest = kFetchAges - 1;
  int64_t ties = lacking;  // wanted of this age
  while (ties > counts[oldest]) ties -= counts[oldest--];
  int64_t found = 0;
  for (int64_t s = 0; found < lacking; ++s) {
    const int32_t mine = age(clock, h.stamp()[s]);
    if (mine < oldest || (mine == oldest && ties-- <= 0)) continue;
    int32_t* task = h.todo() + 2 * found++;
    if (h.unit_in()[s] >= 0) h.slot_of()[h.unit_in()[s]] = -1;
    h.slot_of()[task[0]] = task[1] = static_cast<int32_t>(s);
    h.unit_in()[s] = task[0];
    h.stamp()[s] = clock;
  }
}

void copy_units(const Head& h, int64_t lacking) {
  const KvFetchArgs& a = h.a;
  const int64_t batch = h.head / a.kv_heads, kv_head = h.head % a.kv_heads;
  const auto copy = [&](const void* far, int64_t batch_stride, int64_t head_stride,
                        int64_t token_stride, void* near) {
    const auto* from =
        static_cast<const uint8_t*>(far) + batch * batch_stride + kv_head * head_stride;
    auto* to = static_cast<uint8_t*>(near) + h.head * a.slots * a.unit * a.row_bytes;
    for (int64_t i = 0; i < lacking; ++i) {
      const int64_t unit = h.todo()[2 * i], slot = h.todo()[2 * i + 1];
      for (int64_t t = 0; t < a.unit; ++t) {
        std::memcpy(to + (slot * a.unit + t) * a.row_bytes,
                    from + (unit * a.unit + t) * token_stride, static_cast<size_t>(a.row_bytes));
      }
    }
  };
  copy(a.far_keys, a.key_batch_stride, a.key_head_stride, a.key_token_stride, a.near_keys);
  copy(a.far_values, a.value_batch_stride, a.value_head_stride, a.value_token_stride,
       a.near_values);
}

bool names_units(const Head& h) {
  for (int64_t i = 0; i < h.listed(); ++i) {
    const int32_t token = h.index()[i * h.a.unit];
    if (token < 0 || token / h.a.unit >= h.a.units) return false;
  }
  return true;
}

void fetch_head(const Head& h) {
  const KvFetchArgs& a = h.a;
  const int64_t listed = h.listed();
  const int32_t clock = ++a.clock[h.head];
  int64_t lacking = 0, used = 0;
  for (int64_t i = 0; i < listed; ++i) {
    if (h.counted(i) == 0) continue;
    ++used;
    const auto unit = static_cast<int32_t>(h.index()[i * a.unit] / a.unit);
    const int32_t slot = h.slot_of()[unit];
    if (slot >= 0) {
      h.stamp()[slot] = clock;
    } else {
      h.todo()[2 * lacking++] = unit;
    }
  }
  if (lacking > 0) replace_oldest(h, clock, lacking);
  int32_t* near = a.near + h.head * a.index_stride;
  for (int64_t i = 0; i < listed; ++i) {
    const int64_t slot = h.slot_of()[h.index()[i * a.unit] / a.unit];
    for (int64_t t = a.unit - h.counted(i); t < a.unit; ++t) {
      *near++ = static_cast<int32_t>(slot * a.unit + t);
    }
  }
  a.near_count[h.head] = static_cast<int32_t>(near - (a.near + h.head * a.index_stride));
  a.lacking[h.head] = static_cast<int32_t>(lacking);
  a.reads[2 * h.head] += used;
  a.reads[2 * h.head + 1] += used - lacking;
  if (a.far_keys) copy_units(h, lacking);
}

}  // namespace

Status kv_fetch(const KvFetchArgs& a) {
  TAMIS_RETURN_IF_ERROR(check_kv_fetch(a));
  const int64_t heads = a.batch * a.kv_heads;
  for (int64_t h = 0; h < heads; ++h) {
    if (names_units({a, h})) continue;
    return error(Code::invalid_argument,
                 "kv_fetch: index: got a token of no unit, wanted 0 to %lld",
                 static_cast<long long>(a.units * a.unit - 1));
  }
  const int64_t work = heads * (a.index_stride * a.row_bytes / 16 + a.slots);
  const int threads = static_cast<int>(std::clamp<int64_t>(
      work >> 14, 1, std::min<int64_t>(num_threads(), std::max<int64_t>(heads, 1))));
  const auto run = [&](int thread, int count) {
    for (int64_t h = heads * thread / count; h < heads * (thread + 1) / count; ++h) {
      fetch_head({a, h});
    }
  };
  threads > 1 ? parallel(threads, run) : run(0, 1);
  return {};
}

}  // namespace tamis
