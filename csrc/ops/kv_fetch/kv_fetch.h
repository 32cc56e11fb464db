// kv_fetch: a pool of fixed size near the kernels over keys and values that lie far away: a mapped
// file, or host memory that a device reaches. Of the units (tokens, or pages of `unit` tokens) that
// a step lists, those not in the pool take the slots that were read longest ago; the list comes
// back as places in the pool, in the same order. Formula, for each head:
//   1. clock += 1; listed units that are in the pool get stamp = clock
//   2. the i-th listed unit that is not gets the i-th of the slots of largest age = clock - stamp
//      (capped at kFetchAges - 1), lower slots first among equals; the i-th in order of slots
//   3. near = slot * unit + t for each listed token t of a unit that counts; those before `begin`
//      do not, and no unit of them alone is fetched
// Same lists and maps on every backend.
#pragma once

#include <cstdint>

#include "base/status.h"

namespace tamis {

inline constexpr int32_t kFetchAges = 1024;
inline constexpr int32_t kFetchEmpty = -kFetchAges;  // stamp of a slot without a unit: the oldest

// heads = batch * kv_heads. All arrays contiguous but far_*, whose strides are in bytes.
// index, near: [heads, index_stride], whole units of consecutive tokens; count, near_count: [heads]
// tokens of them. todo: [heads, index_stride / unit, 2], unit and slot of what was fetched, and how
// many, lacking [heads].
// Maps: slot_of [heads, units], -1 where not in the pool; unit_in [heads, slots], -1 where empty;
// stamp [heads, slots]; clock [heads]; reads [heads, 2]: units that count so far, and those found.
// near_keys, near_values: [heads, slots * unit] rows of row_bytes. far_keys null: nothing is
// copied, that is left to who reads `todo`.
struct KvFetchArgs {
  int64_t batch = 0, kv_heads = 0, units = 0, slots = 0, unit = 1;
  const int32_t* index = nullptr;
  int64_t index_stride = 0;
  const int32_t* count = nullptr;
  const int32_t* begin = nullptr;  // [heads] first token that counts; null: all
  int32_t *slot_of = nullptr, *unit_in = nullptr, *stamp = nullptr, *clock = nullptr;
  int64_t* reads = nullptr;
  int32_t *near = nullptr, *near_count = nullptr, *todo = nullptr, *lacking = nullptr;
  int64_t row_bytes = 0;
  const void *far_keys = nullptr, *far_values = nullptr;
  int64_t key_batch_stride = 0, key_head_stride = 0, key_token_stride = 0;
  int64_t value_batch_stride = 0, value_head_stride = 0, value_token_stride = 0;
  void *near_keys = nullptr, *near_values = nullptr;
};

// Checks and runs on the pool of threads. The result does not depend on their number.
Status kv_fetch(const KvFetchArgs& args);

// By sorting; copies too. For tests.
Status kv_fetch_reference(const KvFetchArgs& args);

// Sizes and null pointers.
Status check_kv_fetch(const KvFetchArgs& args);

}  // namespace tamis
