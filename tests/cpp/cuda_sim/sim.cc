// The engine: scheduling of fibers, collectives, memory.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "base/numeric.h"
#include "cuda_sim/sim_state.h"

namespace tamis::sim {

Cluster g;
Here here;

const std::array<float, 0x10000> f16_values = [] {
  std::array<float, 0x10000> all;
  for (uint32_t h = 0; h < all.size(); ++h) all[h] = f32_from_f16(static_cast<uint16_t>(h));
  return all;
}();

namespace {

void move_to(std::vector<Store>& to, std::vector<Store>& from) {
  to.insert(to.end(), from.begin(), from.end());
  from.clear();
}

void land(std::vector<Store>& stores) {
  for (const Store& s : stores) std::memcpy(s.to, s.data, s.bytes);
  stores.clear();
}

void entry() {
  try {
    (*g.kernel)();
  } catch (const std::exception& stop) {
    if (g.error.empty()) g.error = stop.what();
  }
  me().done = true;
  ++g.progress;
  yield();
}

void start_cluster() {
  for (Block& block : g.blocks) {
    std::fill(block.shared.begin(), block.shared.end(), kPoison);
    block.arrived = 0;
    block.barriers = {};
    block.copies = 0;
    block.hiding = 0;
    block.registers = 0;
    block.stores = {};
  }
  g.barriers.clear();
  g.sent.clear();
  g.sends = 0;
  g.arrived = 0;
  g.meetings = 0;
  const Dim3 size = g.launch.block;
  const auto count = static_cast<uint32_t>(g.threads.size() / g.blocks.size());
  for (Warp& warp : g.warps) {
    warp = {};
    warp.registers = std::min(65536 / (count * g.launch.resident), 255U) / 8 * 8;
  }
  const uint32_t warps = (count + kLanes - 1) / kLanes;
  for (uint32_t all = 0; all < g.threads.size(); ++all) {
    Thread& thread = g.threads[all];
    const uint32_t i = all % count;
    thread.done = false;
    thread.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    thread.block = all / count;
    thread.lane = i % kLanes;
    thread.warp = thread.block * warps + i / kLanes;
    thread.barriers = thread.clusters = thread.waits = thread.fences = thread.arrivals = 0;
    thread.warps = 0;
    thread.stores = {};
    thread.open.clear();
    thread.groups.clear();
    thread.boxes.clear();
    thread.products.clear();
    thread.product_groups.clear();
    thread.sums.clear();
    thread.product_waits = 0;
    thread.seen = 0;
    thread.arrived = thread.fenced = thread.hidden = thread.unseen = false;
    thread.fiber.reset(&entry);
    ++g.warps[thread.warp].lanes;
  }
}

// Every lane of the warp, from a random one on, until it leaves. Returns how many are not done.
uint32_t step_warp(size_t warp) {
  uint32_t left = 0;
  const uint64_t first = g.random();
  const auto until_slow = static_cast<uint32_t>(g.random() % 16 == 0 ? 1 + g.random() % 8 : 0);
  for (uint32_t i = 0; i < g.warps[warp].lanes; ++i) {
    g.current = warp * kLanes + (first + i) % g.warps[warp].lanes;
    if (me().done) continue;
    Thread& thread = me();
    thread.until_slow = until_slow;
    std::vector<uint8_t>& memory = g.blocks[thread.block].shared;
    here = {.thread = thread.index,
            .block = {g.index.x + thread.block, g.index.y, g.index.z},
            .shared = memory.data(),
            .shared_bytes = memory.size()};
    thread.fiber.enter();
    if (!g.error.empty()) return 0;
    left += me().done ? 0 : 1;
  }
  return left;
}

void run_cluster() {
  start_cluster();
  std::vector<size_t> order(g.warps.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (uint32_t left = 1; left > 0;) {
    const uint64_t before = g.progress;
    left = 0;
    std::shuffle(order.begin(), order.end(), g.random);
    for (const size_t warp : order) {
      if (g.warps[warp].asleep > 0) {
        --g.warps[warp].asleep;
        ++g.progress;
        ++left;
        continue;
      }
      // A warp runs ahead until it is stuck, now and then it is stopped earlier.
      uint32_t waiting;
      uint64_t seen;
      do {
        seen = g.progress;
        waiting = step_warp(warp);
        if (!g.error.empty()) return;
      } while (waiting > 0 && g.warps[warp].asleep == 0 && g.progress != seen &&
               g.random() % 64 != 0);
      left += waiting;
    }
    if (left > 0 && g.progress == before) {
      g.error = "deadlock: " + std::to_string(left) + " threads wait";
      return;
    }
  }
  const auto keep = [](Stores& stores) {
    move_to(g.unpublished, stores.plain);
    move_to(g.unpublished, stores.fenced);
  };
  for (Block& block : g.blocks) keep(block.stores);
  for (Warp& warp : g.warps) keep(warp.stores);
  for (const auto& [place, b] : g.barriers) {
    if (!b.copies.empty()) g.error = "a block ends before what was sent to it is there";
  }
  for (Thread& thread : g.threads) {
    keep(thread.stores);
    if (!thread.open.empty()) g.error = "a thread ends with copies it never committed";
    if (!thread.boxes.empty()) g.error = "a thread ends with boxes that may still be read";
    for (const auto& group : thread.groups) {
      if (!group.empty()) g.error = "a thread ends with copies it never waited for";
    }
    if (thread.arrived) g.error = "a thread ends before its cluster has met";
    if (!thread.products.empty() || !thread.product_groups.empty()) {
      g.error = "a thread ends with products it never waited for";
    }
  }
}

}  // namespace

std::string launch(const Launch& launch, const std::function<void()>& kernel) {
  const size_t count = size_t{launch.block.x} * launch.block.y * launch.block.z;
  g.launch = launch;
  g.kernel = &kernel;
  g.blocks.resize(launch.cluster);
  g.threads.resize(count * launch.cluster);
  g.warps.resize((count + kLanes - 1) / kLanes * launch.cluster);
  for (Block& block : g.blocks) block.shared.resize(launch.shared_bytes);
  g.random.seed(launch.seed);
  g.error.clear();
  g.unpublished.clear();
  for (g.index.z = 0; g.index.z < launch.grid.z; ++g.index.z) {
    for (g.index.y = 0; g.index.y < launch.grid.y; ++g.index.y) {
      for (g.index.x = 0; g.index.x < launch.grid.x; g.index.x += launch.cluster) {
        run_cluster();
        if (!g.error.empty()) return g.error;
      }
    }
  }
  land(g.unpublished);
  return {};
}

void fail(const std::string& what) {
  throw std::runtime_error(what);
}

void check_shared(uint32_t at, size_t bytes, size_t alignment, size_t all, const char* what) {
  if (at + bytes > all) {
    fail(std::string(what) + ": bytes " + std::to_string(at) + " to " + std::to_string(at + bytes) +
         " of " + std::to_string(all) + " in shared memory");
  }
  if (at % alignment != 0) fail(std::string(what) + ": misaligned shared memory");
}

uint8_t* shared_of(uint32_t block, uint32_t at, size_t bytes, size_t alignment, const char* what) {
  if (block >= g.blocks.size()) fail(std::string(what) + ": no such block in the cluster");
  std::vector<uint8_t>& memory = g.blocks[block].shared;
  check_shared(at, bytes, alignment, memory.size(), what);
  return memory.data() + at;
}

void sync_block() {
  linger();
  if (me().barriers++ == g.launch.faults.barrier) return;
  Block& block = g.blocks[me().block];
  const auto count = static_cast<uint32_t>(g.threads.size() / g.blocks.size());
  meet(block.arrived, block.meetings, count, [&] {
    for (uint32_t i = 0; i < count; ++i) {
      Thread& thread = g.threads[me().block * count + i];
      for (Stores* theirs : {&thread.stores, &g.warps[thread.warp].stores}) {
        move_to(block.stores.plain, theirs->plain);
        move_to(block.stores.fenced, theirs->fenced);
      }
    }
  });
}

namespace {

WarpBarrier& warp_barrier(uint32_t barrier, uint32_t threads) {
  if (barrier == 0) fail("sync_warps: the barrier of sync_block");
  WarpBarrier& b = g.blocks[me().block].barriers.at(barrier);
  if (b.arrived > 0 && b.threads != threads) fail("sync_warps: a barrier of other threads");
  b.threads = threads;
  return b;
}

}  // namespace

void sync_warps(uint32_t barrier, uint32_t threads) {
  linger();
  if (me().barriers++ == g.launch.faults.barrier) return;
  WarpBarrier& b = warp_barrier(barrier, threads);
  meet(b.arrived, b.meetings, threads, [] {});
}

void arrive_warps(uint32_t barrier, uint32_t threads) {
  WarpBarrier& b = warp_barrier(barrier, threads);
  if (++b.arrived == threads) {
    b.arrived = 0;
    ++b.meetings;
    ++g.progress;
  }
  linger();
}

void take_registers(uint32_t registers) {
  linger();
  Warp& warp = g.warps[me().warp];
  Block& block = g.blocks[me().block];
  if (me().lane > 0) {
    while (warp.registers != registers) yield();
    return;
  }
  if (registers < warp.registers) fail("take_registers: has more");
  const uint32_t more = registers - warp.registers;
  while (block.registers < more) yield();
  block.registers -= more;
  warp.registers = registers;
  ++g.progress;
}

void keep_registers(uint32_t registers) {
  Warp& warp = g.warps[me().warp];
  if (me().lane > 0) {
    while (warp.registers != registers) yield();
    return;
  }
  if (registers > warp.registers) fail("keep_registers: has fewer");
  g.blocks[me().block].registers += warp.registers - registers;
  warp.registers = registers;
  ++g.progress;
}

void store_later(void* to, const void* from, size_t bytes) {
  if (bytes > kStoreBytes) fail("store for other blocks: too long");
  Store& store = me().stores.plain.emplace_back(to, bytes);
  std::memcpy(store.data, from, bytes);
}

void fence_device() {
  if (me().fences++ == g.launch.faults.fence) return;
  move_to(me().stores.fenced, g.warps[me().warp].stores.plain);
  move_to(me().stores.fenced, g.blocks[me().block].stores.plain);
  move_to(me().stores.fenced, me().stores.plain);
}

void publish() {
  linger();
  land(g.blocks[me().block].stores.fenced);
  land(g.warps[me().warp].stores.fenced);
  land(me().stores.fenced);
}

void arrive_cluster() {
  Thread& thread = me();
  if (thread.arrived) fail("cluster: arrived twice");
  thread.arrived = true;
  thread.skips = thread.clusters++ == g.launch.faults.cluster;
  if (thread.skips) return;
  thread.met = g.meetings;
  if (++g.arrived == g.threads.size()) {
    g.arrived = 0;
    ++g.meetings;
    ++g.progress;
  }
  linger();
}

void wait_cluster() {
  if (!std::exchange(me().arrived, false)) fail("cluster: waits before it arrived");
  if (me().skips) return;
  while (me().met == g.meetings) yield();
  me().seen = me().met + 1;
}

void sync_cluster() {
  arrive_cluster();
  wait_cluster();
}

void sync_warp() {
  linger();
  if (me().warps++ == g.launch.faults.warp) return;
  Warp& warp = g.warps[me().warp];
  meet(warp.arrived, warp.meetings, warp.lanes, [&] {
    for (uint32_t i = 0; i < warp.lanes; ++i) {
      Stores& theirs = g.threads[g.current - me().lane + i].stores;
      move_to(warp.stores.plain, theirs.plain);
      move_to(warp.stores.fenced, theirs.fenced);
    }
  });
}

const uint8_t* exchange(const void* mine, size_t bytes) {
  Warp& warp = g.warps[me().warp];
  auto& slots = warp.slots[warp.exchanges[me().lane]++ % 2];
  std::memcpy(slots[me().lane], mine, bytes);
  meet(warp.arrived, warp.meetings, warp.lanes, [] {});  // which orders nothing in memory
  return slots[0];
}

}  // namespace tamis::sim
