// kv_choose by row: a block chooses for one query row, as kv_select does, but leaves bits of the
// units that it took; the block of a head that arrives last lists what any of them took, ascending.
// Bits are of units from the first one that is not forced, which is the same for all rows.
#pragma once

#include "base/cuda/ticket.h"
#include "ops/kv_select/select.cuh"
#include "ops/kv_select/unite_params.h"

namespace tamis {

// Writes a unit as its tokens.
TAMIS_DEVICE void put_tokens(const KvSelectArgs& a, int64_t head, int32_t place, int32_t unit) {
  const auto page = static_cast<int32_t>(a.page);
  int32_t* to = a.index + head * a.index_stride + int64_t{place} * page;
  const int32_t first = unit * page;
  if (reinterpret_cast<uintptr_t>(to) % 16 == 0 && page % 4 == 0) {
#pragma unroll 1
    for (int32_t i = 0; i < page; i += 4) {
      const auto token = static_cast<uint32_t>(first + i);
      *reinterpret_cast<dev::Word4*>(to + i) = {token, token + 1, token + 2, token + 3};
    }
    return;
  }
#pragma unroll 1
  for (int32_t i = 0; i < page; ++i) to[i] = first + i;
}

// Grid [rows, heads] of kThreads. kOne: for at most kSelectHeld units a thread, as select_units.
template <bool kOne, int kThreads>
TAMIS_DEVICE void select_rows(const UniteParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const KvSelectArgs& a = p.select;
  const int64_t head = dev::block_index_y(), row = head * p.rows + dev::block_index_x();
  {
    const SelectTask task(a, head);
    if (task.k > 0 && task.k < task.n) {
      uint32_t* taken = p.taken + row * p.words;
      const SelectRange range{a.scores + row * a.units, task.begin + task.sink, task.n};
      choose<kOne && dev::kBulkCopies, kThreads>(
          range, task.k, [&](auto& held, float least, int32_t ties) {
            take_chosen(held, least, ties, NobodyBefore{},
                        [&](int32_t, int32_t first, uint32_t bits) { taken[first / 32] = bits; });
          });
    }
  }
  if (!arrives_last(p.tickets + head, static_cast<uint32_t>(p.rows), kStateAt)) return;
  const SelectTask task(a, head);
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const uint32_t* theirs = p.taken + head * p.rows * p.words;
  const int32_t first = task.begin + task.sink;
  int32_t listed = task.sink;
  for (int32_t from = 0; from < task.n; from += 32 * kThreads) {
    // A thread 32 units, and how many are listed before them.
    const int32_t word = from / 32 + static_cast<int32_t>(thread), there = task.n - 32 * word;
    uint32_t any = 0;
    if (task.k == task.n) {
      any = there >= 32 ? ~0u : there > 0 ? (1u << there) - 1 : 0;
    } else if (task.k > 0 && there > 0) {
      for (int32_t r = 0; r < p.rows; ++r) any |= dev::load_volatile(theirs + r * p.words + word);
    }
    const auto mine = static_cast<uint32_t>(dev::popcount(any));
    uint32_t through = mine;
    for (int distance = 1; distance < 32; distance *= 2) {
      through = dev::prefix_step(through, distance);
    }
    if (lane == 31) dev::store_shared<uint32_t>(kWarpsAt + 4 * warp, through);
    dev::sync_block();
    uint32_t warps = lane < kThreads / 32 ? dev::load_shared<uint32_t>(kWarpsAt + 4 * lane) : 0;
    const uint32_t own = warps;
    for (int distance = 1; distance < 32; distance *= 2) warps = dev::prefix_step(warps, distance);
    const int32_t before = dev::shuffle(static_cast<int32_t>(warps - own), static_cast<int>(warp));
    const uint32_t at = static_cast<uint32_t>(listed + before) + through - mine;
    dev::store_shared<dev::Word2>(kCountsAt + 8 * thread, {any, at});
    listed += dev::shuffle(static_cast<int32_t>(warps), 31);
    dev::sync_block();
    const int32_t left = task.n - from;
    const auto end = left < 32 * kThreads ? left : 32 * kThreads;
    for (auto i = static_cast<int32_t>(thread); i < end; i += kThreads) {
      const auto bits = dev::load_shared<dev::Word2>(kCountsAt + 8 * static_cast<uint32_t>(i / 32));
      const uint32_t bit = 1u << (i % 32);
      if ((bits.x & bit) == 0) continue;
      const int32_t place = static_cast<int32_t>(bits.y) + dev::popcount(bits.x & (bit - 1));
      put_tokens(a, head, place, first + from + i);
    }
    dev::sync_block();  // before the words change
  }
  for (auto i = static_cast<int32_t>(thread); i < task.sink; i += kThreads) {
    put_tokens(a, head, i, task.begin + i);
  }
  for (auto i = static_cast<int32_t>(thread); i < task.recent; i += kThreads) {
    put_tokens(a, head, listed + i, static_cast<int32_t>(a.units) - task.recent + i);
  }
  if (thread == 0) a.count[head] = (listed + task.recent) * static_cast<int32_t>(a.page);
}

}  // namespace tamis
