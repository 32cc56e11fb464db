// A pool over far keys and values, as kv_fetch keeps it from step to step: one for each backend,
// fed with the same lists.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "guarded.h"
#include "ops/kv_fetch/kv_fetch.h"

namespace tamis::test {

struct alignas(16) FetchRow {  // one row of keys or values
  uint8_t bytes[32];
};

struct FetchCase {
  int64_t unit = 1, slots = 20, units = 50, width = 12;  // units of a list
  bool begin = false;
  int64_t batch = 2, kv_heads = 3;
};

// Far rows and the lists of a step.
struct FetchSteps {
  FetchCase c;
  std::mt19937_64 random;
  std::vector<int32_t> index, count, begin;
  Guarded<FetchRow> keys, values;

  FetchSteps(const FetchCase& given, uint64_t seed)
      : c(given),
        random(seed),
        index(static_cast<size_t>(heads() * c.width * c.unit), -7),
        count(static_cast<size_t>(heads())),
        begin(static_cast<size_t>(heads())),
        keys(static_cast<size_t>(heads() * tokens())),
        values(keys.size()) {
    for (auto* x : {&keys, &values}) {
      for (FetchRow& row : x->span()) {
        for (uint8_t& byte : row.bytes) byte = static_cast<uint8_t>(random());
      }
    }
  }
  int64_t heads() const { return c.batch * c.kv_heads; }
  int64_t tokens() const { return c.units * c.unit + 3; }  // the last fill no unit
  // Lists like the last ones, but for a few.
  void next() {
    std::fill(index.begin(), index.end(), -7);
    for (int64_t h = 0; h < heads(); ++h) {
      std::vector<int32_t> all(static_cast<size_t>(c.units));
      for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
      const auto near =
          static_cast<int64_t>(random() % 3 ? std::min<int64_t>(c.units, 2 * c.width) : c.units);
      std::shuffle(all.begin(), all.begin() + near, random);
      all.resize(std::min<size_t>(static_cast<size_t>(near),
                                  random() % static_cast<uint64_t>(c.width + 1)));
      std::sort(all.begin(), all.end());
      count[static_cast<size_t>(h)] =
          static_cast<int32_t>(static_cast<int64_t>(all.size()) * c.unit);
      for (size_t i = 0; i < all.size(); ++i) {
        for (int64_t t = 0; t < c.unit; ++t) {
          index[static_cast<size_t>((h * c.width + static_cast<int64_t>(i)) * c.unit + t)] =
              static_cast<int32_t>(all[i] * c.unit + t);
        }
      }
      begin[static_cast<size_t>(h)] = static_cast<int32_t>(random() % 7);
    }
  }
};

struct FetchPool {
  Guarded<int32_t> slot_of, unit_in, stamp, clock, near, near_count, todo, lacking;
  std::vector<int64_t> reads;
  Guarded<FetchRow> keys, values;

  explicit FetchPool(const FetchSteps& s)
      : slot_of(static_cast<size_t>(s.heads() * s.c.units)),
        unit_in(static_cast<size_t>(s.heads() * s.c.slots)),
        stamp(unit_in.size()),
        clock(static_cast<size_t>(s.heads())),
        near(s.index.size()),
        near_count(clock.size()),
        todo(2 * s.index.size() / static_cast<size_t>(s.c.unit)),
        lacking(clock.size()),
        reads(2 * clock.size()),
        keys(unit_in.size() * static_cast<size_t>(s.c.unit)),
        values(keys.size()) {
    std::fill(slot_of.span().begin(), slot_of.span().end(), -1);
    std::fill(unit_in.span().begin(), unit_in.span().end(), -1);
    std::fill(stamp.span().begin(), stamp.span().end(), kFetchEmpty);
    std::fill(clock.span().begin(), clock.span().end(), 0);
    for (auto* x : {&keys, &values}) std::memset(x->data(), 0, x->span().size_bytes());
  }
  KvFetchArgs args(const FetchSteps& s, bool copies = true) {
    std::fill(near.span().begin(), near.span().end(), -9);
    std::fill(todo.span().begin(), todo.span().end(), -9);
    const int64_t row = sizeof(FetchRow), far = s.tokens() * row;
    return {.batch = s.c.batch,
            .kv_heads = s.c.kv_heads,
            .units = s.c.units,
            .slots = s.c.slots,
            .unit = s.c.unit,
            .index = s.index.data(),
            .index_stride = s.c.width * s.c.unit,
            .count = s.count.data(),
            .begin = s.c.begin ? s.begin.data() : nullptr,
            .slot_of = slot_of.data(),
            .unit_in = unit_in.data(),
            .stamp = stamp.data(),
            .clock = clock.data(),
            .reads = reads.data(),
            .near = near.data(),
            .near_count = near_count.data(),
            .todo = todo.data(),
            .lacking = lacking.data(),
            .row_bytes = row,
            .far_keys = copies ? s.keys.data() : nullptr,
            .far_values = s.values.data(),
            .key_batch_stride = s.c.kv_heads * far,
            .key_head_stride = far,
            .key_token_stride = row,
            .value_batch_stride = s.c.kv_heads * far,
            .value_head_stride = far,
            .value_token_stride = row,
            .near_keys = keys.data(),
            .near_values = values.data()};
  }
  // Where the two differ; null nowhere.
  const char* differs(const FetchPool& o) const {
    const auto same = [](const auto& x, const auto& y) {
      return std::memcmp(x.data(), y.data(), x.size() * sizeof(*x.data())) == 0;
    };
    if (!same(near_count, o.near_count)) return "near_count";
    if (!same(near, o.near)) return "near";
    if (!same(lacking, o.lacking)) return "lacking";
    if (!same(todo, o.todo)) return "todo";
    if (!same(slot_of, o.slot_of)) return "slot_of";
    if (!same(unit_in, o.unit_in)) return "unit_in";
    if (!same(stamp, o.stamp)) return "stamp";
    if (!same(clock, o.clock)) return "clock";
    if (reads != o.reads) return "reads";
    return same(keys, o.keys) && same(values, o.values) ? nullptr : "rows";
  }
};

inline const FetchCase kFetchCases[] = {
    {},
    {.slots = 12},  // as many as a list has
    {.unit = 4, .begin = true},
    {.unit = 16, .slots = 5, .units = 9, .width = 5, .begin = true},
    {.slots = 3000, .units = 4000, .width = 2500, .batch = 1, .kv_heads = 2},
    {.slots = 1, .units = 1, .width = 1},
};

}  // namespace tamis::test
