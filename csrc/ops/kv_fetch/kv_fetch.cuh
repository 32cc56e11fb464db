// kv_fetch on CUDA: one block a head keeps the maps, then a warp a unit copies what is missing. The
// slots read longest ago are found by counting ages in shared memory: exact, two passes over the
// stamps, only where something is missing. Reading host memory over PCIe takes some 2 us, so what
// counts is how many bytes are asked for at once: all units in one launch, 512 bytes a warp and
// turn.
#pragma once

#include "base/cuda/dev.h"
#include "ops/kv_fetch/kv_fetch_cuda.h"

namespace tamis {

// Shared memory of a block: counts of ages; a number a warp; what is found.
inline constexpr uint32_t kFetchWarpsAt = 4 * kFetchAges;
inline constexpr uint32_t kFetchStateAt = kFetchWarpsAt + 4 * (kFetchThreads / 32);
inline constexpr uint32_t kFetchShared = kFetchStateAt + 8;
static_assert(kFetchAges == kFetchThreads && kFetchThreads == 32 * 32, "an age a thread");

struct FetchParams {
  KvFetchArgs args;
};

// What threads before this one have, and all have, of `mine`; sums of all are below 2^32.
TAMIS_DEVICE uint32_t before_in_block(uint32_t mine, uint32_t* all) {
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  uint32_t through = mine;
  for (int distance = 1; distance < 32; distance *= 2) {
    through = dev::prefix_step(through, distance);
  }
  if (lane == 31) dev::store_shared<uint32_t>(kFetchWarpsAt + 4 * warp, through);
  dev::sync_block();
  const auto theirs = dev::load_shared<uint32_t>(kFetchWarpsAt + 4 * lane);
  uint32_t warps = theirs;
  for (int distance = 1; distance < 32; distance *= 2) warps = dev::prefix_step(warps, distance);
  *all = static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(warps), 31));
  const auto until = static_cast<int32_t>(warps - theirs);
  const auto before = static_cast<uint32_t>(dev::shuffle(until, static_cast<int>(warp)));
  dev::sync_block();  // before the warps' numbers change
  return before + through - mine;
}

struct FetchHead {
  const KvFetchArgs& a;
  int64_t head;
  int32_t clock, listed, first;

  TAMIS_DEVICE FetchHead(const KvFetchArgs& args, int64_t number) : a(args), head(number) {
    clock = dev::load_volatile(a.clock + head) + 1;
    first = a.begin ? dev::load_volatile(a.begin + head) : 0;
    const auto room = static_cast<int32_t>(a.index_stride);
    const int32_t count = dev::load_volatile(a.count + head);
    listed = (count < 0 ? 0 : count < room ? count : room) / unit();
  }
  TAMIS_DEVICE int32_t unit() const { return static_cast<int32_t>(a.unit); }
  TAMIS_DEVICE int32_t* slot_of() const { return a.slot_of + head * a.units; }
  TAMIS_DEVICE int32_t* unit_in() const { return a.unit_in + head * a.slots; }
  TAMIS_DEVICE int32_t* stamp() const { return a.stamp + head * a.slots; }
  TAMIS_DEVICE int32_t* todo() const { return a.todo + 2 * head * (a.index_stride / a.unit); }
  // The number of listed unit i.
  TAMIS_DEVICE int32_t number(int32_t i) const {
    const int32_t token = dev::load_volatile(a.index + head * a.index_stride + i * unit());
    const int32_t found = token / unit(), last = static_cast<int32_t>(a.units) - 1;
    return found < 0 ? 0 : found < last ? found : last;
  }
  // Tokens of a unit that count, its last ones.
  TAMIS_DEVICE int32_t counted(int32_t number) const {
    const int32_t tokens = (number + 1) * unit() - first;
    return tokens < 0 ? 0 : tokens < unit() ? tokens : unit();
  }
  TAMIS_DEVICE int32_t age(int32_t slot) const {
    const int32_t found = clock - dev::load_volatile(stamp() + slot);
    return found < kFetchAges ? found : kFetchAges - 1;
  }
};

// Stamps what is there and lists what is not; how many units count, and how many are missing.
TAMIS_DEVICE void find_missing(const FetchHead& h, int32_t* used, int32_t* lacking) {
  *used = *lacking = 0;
  for (int32_t from = 0; from < h.listed; from += kFetchThreads) {
    const int32_t i = from + static_cast<int32_t>(dev::thread_index());
    int32_t number = 0, slot = 0;
    bool counts = false;
    if (i < h.listed) {
      number = h.number(i);
      counts = h.counted(number) > 0;
      if (counts) slot = dev::load_volatile(h.slot_of() + number);
      if (counts && slot >= 0) h.stamp()[slot] = h.clock;
    }
    uint32_t all = 0;
    const uint32_t mine = (counts && slot < 0 ? 1u : 0u) | (counts ? 1u << 16 : 0u);
    const uint32_t before = before_in_block(mine, &all);
    if (mine & 1u) h.todo()[2 * (*lacking + static_cast<int32_t>(before & 0xffffu))] = number;
    *lacking += static_cast<int32_t>(all & 0xffffu);
    *used += static_cast<int32_t>(all >> 16);
  }
}

// Gives every missing unit a slot.
TAMIS_DEVICE void replace_oldest(const FetchHead& h, int32_t lacking) {
  const auto thread = static_cast<int32_t>(dev::thread_index());
  const auto slots = static_cast<int32_t>(h.a.slots);
  dev::store_shared<uint32_t>(4 * dev::thread_index(), 0);
  dev::sync_block();  // also: stamps and the list are written
  for (int32_t s = thread; s < slots; s += kFetchThreads) {
    dev::count_shared(4 * static_cast<uint32_t>(h.age(s)));
  }
  dev::sync_block();
  const uint32_t mine = dev::load_shared<uint32_t>(4 * (kFetchAges - 1 - dev::thread_index()));
  uint32_t all = 0;
  const uint32_t older = before_in_block(mine, &all), wanted = static_cast<uint32_t>(lacking);
  if (older < wanted && wanted <= older + mine) {
    dev::store_shared<int32_t>(kFetchStateAt, kFetchAges - 1 - thread);
    dev::store_shared<int32_t>(kFetchStateAt + 4, static_cast<int32_t>(wanted - older));
  }
  dev::sync_block();
  const auto oldest = dev::load_shared<int32_t>(kFetchStateAt);
  const auto ties = dev::load_shared<int32_t>(kFetchStateAt + 4);
  int32_t listed = 0, met = 0;
  for (int32_t from = 0; from < slots && listed + (met < ties ? met : ties) < lacking;
       from += kFetchThreads) {
    const int32_t s = from + thread;
    const int32_t age = s < slots ? h.age(s) : 0;
    const bool above = s < slots && age > oldest, tie = s < slots && age == oldest;
    const uint32_t before = before_in_block((above ? 1u : 0u) | (tie ? 1u << 16 : 0u), &all);
    const int32_t equal = met + static_cast<int32_t>(before >> 16);
    if (above || (tie && equal < ties)) {
      const int32_t i =
          listed + static_cast<int32_t>(before & 0xffffu) + (equal < ties ? equal : ties);
      const int32_t number = dev::load_volatile(h.todo() + 2 * i);
      const int32_t gone = dev::load_volatile(h.unit_in() + s);
      if (gone >= 0) h.slot_of()[gone] = -1;
      h.todo()[2 * i + 1] = s;
      h.slot_of()[number] = s;
      h.unit_in()[s] = number;
      h.stamp()[s] = h.clock;
    }
    listed += static_cast<int32_t>(all & 0xffffu);
    met += static_cast<int32_t>(all >> 16);
  }
}

// Grid [heads] of kFetchThreads.
TAMIS_DEVICE void fetch_maps(const FetchParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const KvFetchArgs& a = p.args;
  const FetchHead h(a, dev::block_index_x());
  int32_t used = 0, lacking = 0;
  find_missing(h, &used, &lacking);
  if (lacking > 0) replace_oldest(h, lacking);
  dev::sync_block();  // slots are known
  int32_t* near = a.near + h.head * a.index_stride;
  int32_t written = 0;
  for (int32_t from = 0; from < h.listed; from += kFetchThreads) {
    const int32_t i = from + static_cast<int32_t>(dev::thread_index());
    const int32_t number = i < h.listed ? h.number(i) : 0;
    const int32_t counts = i < h.listed ? h.counted(number) : 0;
    uint32_t all = 0;
    const uint32_t before = before_in_block(static_cast<uint32_t>(counts), &all);
    if (counts > 0) {
      const int32_t end = (dev::load_volatile(h.slot_of() + number) + 1) * h.unit();
      int32_t* to = near + written + static_cast<int32_t>(before);
      for (int32_t t = 0; t < counts; ++t) to[t] = end - counts + t;
    }
    written += static_cast<int32_t>(all);
  }
  if (dev::thread_index() == 0) {
    a.near_count[h.head] = written;
    a.lacking[h.head] = lacking;
    a.clock[h.head] = h.clock;
    int64_t* reads = a.reads + 2 * h.head;
    reads[0] += used;
    reads[1] += used - lacking;
  }
}

// Grid [units of a list / warps of a block, heads] of kFetchCopyThreads.
TAMIS_DEVICE void fetch_units(const FetchParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const KvFetchArgs& a = p.args;
  const int64_t head = dev::block_index_y();
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const auto i = static_cast<int32_t>(dev::block_index_x() * (kFetchCopyThreads / 32) + warp);
  if (i >= dev::load_volatile(a.lacking + head)) return;
  const int32_t* task = a.todo + 2 * (head * (a.index_stride / a.unit) + i);
  const int64_t first = dev::load_volatile(task) * a.unit;  // tokens
  const int64_t to = (head * a.slots + dev::load_volatile(task + 1)) * a.unit * a.row_bytes;
  const int64_t batch = head / a.kv_heads, kv_head = head % a.kv_heads;
  const auto* keys = static_cast<const uint8_t*>(a.far_keys) + batch * a.key_batch_stride +
                     kv_head * a.key_head_stride + first * a.key_token_stride;
  const auto* values = static_cast<const uint8_t*>(a.far_values) + batch * a.value_batch_stride +
                       kv_head * a.value_head_stride + first * a.value_token_stride;
  const auto row = static_cast<uint32_t>(a.row_bytes / 16);
  const uint32_t all = static_cast<uint32_t>(a.unit) * row;  // pieces of 16 bytes of the keys
  for (uint32_t c = lane; c < 2 * all; c += 32) {
    const bool second = c >= all;
    const uint32_t piece = second ? c - all : c, token = piece / row;
    const uint8_t* from =
        second ? values + token * a.value_token_stride : keys + token * a.key_token_stride;
    auto* near = static_cast<uint8_t*>(second ? a.near_values : a.near_keys) + to;
    reinterpret_cast<dev::Word4*>(near)[piece] =
        dev::load_volatile(reinterpret_cast<const dev::Word4*>(from) + piece % row);
  }
}

}  // namespace tamis
