// The engine: scheduling of fibers, collectives, asynchronous copies.
#include "cuda_sim/sim.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <map>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cuda_sim/fiber.h"

namespace tamis::sim {
namespace {

constexpr uint32_t kLanes = 32;
constexpr uint8_t kPoison = 0xff;  // all ones: NaN in bf16, f16 and f32

struct Copy {
  uint32_t block, to, bytes, valid;
  const void* from;
};

struct Store {
  void* to;
  size_t bytes;
  uint8_t data[kStoreBytes];
};

// What has not landed yet, by what a thread, or any thread behind the block's last barrier, knows.
struct Stores {
  std::vector<Store> plain, fenced;
};

void move_to(std::vector<Store>& to, std::vector<Store>& from) {
  to.insert(to.end(), from.begin(), from.end());
  from.clear();
}

void land(std::vector<Store>& stores) {
  for (const Store& s : stores) std::memcpy(s.to, s.data, s.bytes);
  stores.clear();
}

struct Thread {
  Fiber fiber;
  bool done = false;
  Dim3 index;
  uint32_t lane = 0, warp = 0, block = 0;  // warp: of the cluster's; block: of the cluster
  int barriers = 0, clusters = 0, waits = 0, fences = 0, arrivals = 0;  // met so far
  int warps = 0;
  Stores stores;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
  std::vector<std::function<void()>> products;  // not committed
  std::deque<std::vector<std::function<void()>>> product_groups;
  std::map<const void*, std::shared_ptr<void>> sums;
  int product_waits = 0;
  bool arrived = false, skips = false;  // at a meeting of the cluster
  uint64_t met = 0, seen = 0;           // meetings before it, and when it ended
  bool fenced = false;                  // products may take registers
  bool hidden = false;                  // products do not see what it wrote to shared memory
  bool unseen = false;                  // nor what it waited for at a barrier
};

// Deposits alternate between two sets, so one meeting of the warp per exchange is enough.
struct Warp {
  uint32_t arrived = 0, lanes = 0;
  uint64_t meetings = 0;
  std::array<uint64_t, kLanes> exchanges = {};
  alignas(16) uint8_t slots[2][kLanes][kSlotBytes];
  Stores stores;  // of lanes that sync_warp has let pass since
};

struct Barrier {
  uint32_t arrivals = 0, missing = 0;
  int64_t expected = 0;
  uint32_t phase = 0;
  uint64_t made = 0;    // after so many meetings of the cluster
  bool copied = false;  // its phase has copies whose threads have not fenced,
  bool hidden = false;  // the one before had, so products do not see what they brought
  std::vector<Copy> copies;
};

// A barrier of some of a block's warps.
struct WarpBarrier {
  uint32_t threads = 0, arrived = 0;
  uint64_t meetings = 0;
};

struct Block {
  std::vector<uint8_t> shared;
  std::array<WarpBarrier, 16> barriers = {};
  uint32_t arrived = 0;
  uint64_t meetings = 0;
  int copies = 0;
  Stores stores;  // of threads that have met since
};

struct Cluster {
  Launch launch;
  const std::function<void()>* kernel = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Block> blocks;
  std::map<std::pair<uint32_t, uint32_t>, Barrier> barriers;  // by block and place
  std::deque<std::array<uint8_t, kStoreBytes>> sent;          // what is on its way to them
  int sends = 0;
  Dim3 index;  // of its first block
  size_t current = 0;
  uint32_t arrived = 0;
  uint64_t meetings = 0, progress = 0;
  std::mt19937_64 random;
  std::vector<Store> unpublished;  // of blocks that have ended
  std::string error;
};

Cluster g;

Thread& me() {
  return g.threads[g.current];
}

void yield() {
  me().fiber.leave();
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
    block.stores = {};
  }
  g.barriers.clear();
  g.sent.clear();
  g.sends = 0;
  g.arrived = 0;
  g.meetings = 0;
  for (Warp& warp : g.warps) warp = {};
  const Dim3 size = g.launch.block;
  const auto count = static_cast<uint32_t>(g.threads.size() / g.blocks.size());
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
  for (uint32_t i = 0; i < g.warps[warp].lanes; ++i) {
    g.current = warp * kLanes + (first + i) % g.warps[warp].lanes;
    if (me().done) continue;
    me().fiber.enter();
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
      // A warp runs ahead until it is stuck, now and then it is stopped earlier.
      uint32_t waiting;
      uint64_t seen;
      do {
        seen = g.progress;
        waiting = step_warp(warp);
        if (!g.error.empty()) return;
      } while (waiting > 0 && g.progress != seen && g.random() % 64 != 0);
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
    if (thread.arrived) g.error = "a thread ends before its cluster has met";
    if (!thread.products.empty() || !thread.product_groups.empty()) {
      g.error = "a thread ends with products it never waited for";
    }
  }
}

// One meeting of `count` threads; `together` is what happens there.
template <class Together>
void meet(uint32_t& arrived, uint64_t& meetings, uint32_t count, const Together& together) {
  const uint64_t now = meetings;
  if (++arrived == count) {
    together();
    arrived = 0;
    ++meetings;
    ++g.progress;
  } else {
    while (meetings == now) yield();
  }
}

uint32_t alignment_of(uint32_t bytes) {
  return bytes < 16 ? bytes : 16;
}

void poison(uint32_t to, uint32_t bytes, const char* what) {
  std::memset(shared(to, bytes, alignment_of(bytes), what), kPoison, bytes);
}

void perform(const Copy& copy) {
  uint8_t* to =
      shared_of(copy.block, copy.to, copy.bytes, alignment_of(copy.bytes), "asynchronous copy");
  if (copy.valid > 0) std::memcpy(to, copy.from, copy.valid);
  std::memset(to + copy.valid, 0, copy.bytes - copy.valid);
}

void check_source(const void* from, uint32_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(from) % alignment_of(bytes) != 0)
    fail(std::string(what) + ": misaligned source");
}

Barrier& barrier_of(uint32_t block, uint32_t at) {
  const auto found = g.barriers.find({block, at});
  if (found == g.barriers.end()) fail("mbarrier: used before barrier_init");
  return found->second;
}
Barrier& barrier(uint32_t at) {
  return barrier_of(me().block, at);
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

Dim3 thread_index() {
  return me().index;
}
Dim3 block_index() {
  return {g.index.x + me().block, g.index.y, g.index.z};
}

uint8_t* shared(uint32_t at, size_t bytes, size_t alignment, const char* what) {
  return shared_of(me().block, at, bytes, alignment, what);
}

uint8_t* shared_of(uint32_t block, uint32_t at, size_t bytes, size_t alignment, const char* what) {
  if (block >= g.blocks.size()) fail(std::string(what) + ": no such block in the cluster");
  std::vector<uint8_t>& memory = g.blocks[block].shared;
  if (at + bytes > memory.size()) {
    fail(std::string(what) + ": bytes " + std::to_string(at) + " to " + std::to_string(at + bytes) +
         " of " + std::to_string(memory.size()) + " in shared memory");
  }
  if (at % alignment != 0) fail(std::string(what) + ": misaligned shared memory");
  return memory.data() + at;
}

void sync_block() {
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
  if (me().barriers++ == g.launch.faults.barrier) return;
  WarpBarrier& b = warp_barrier(barrier, threads);
  meet(b.arrived, b.meetings, threads, [] {});
}

void arrive_warps(uint32_t barrier, uint32_t threads) {
  WarpBarrier& b = warp_barrier(barrier, threads);
  if (++b.arrived < threads) return;
  b.arrived = 0;
  ++b.meetings;
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
  if (++g.arrived < g.threads.size()) return;
  g.arrived = 0;
  ++g.meetings;
  ++g.progress;
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

void copy_async(uint32_t to, const void* from, uint32_t bytes, uint32_t valid) {
  if (valid > 0) check_source(from, bytes, "cp.async");
  if (g.blocks[me().block].copies++ == g.launch.faults.copy) return;
  poison(to, bytes, "cp.async");
  me().open.push_back({me().block, to, bytes, valid, from});
}

void commit_async() {
  me().groups.push_back(std::exchange(me().open, {}));
}

void wait_async(int groups_left) {
  if (me().waits++ == g.launch.faults.wait) return;
  auto& groups = me().groups;
  while (groups.size() > static_cast<size_t>(groups_left)) {
    for (const Copy& copy : groups.front()) perform(copy);
    groups.pop_front();
    me().hidden = true;
  }
}

void fence_products() {
  me().fenced = true;
}

void queue_product(std::function<void()> product) {
  if (!me().fenced) fail("product: no fence between its registers' writes and it");
  for (const Thread& thread : g.threads) {
    if (thread.block == me().block && thread.hidden) fail("product: a copy without a fence");
  }
  if (me().unseen) fail("product: no fence behind the wait for copies");
  me().products.push_back(std::move(product));
}

std::shared_ptr<void>& sums_at(const void* sums) {
  return me().sums[sums];
}

void commit_products() {
  me().product_groups.push_back(std::exchange(me().products, {}));
  me().fenced = false;
}

void wait_products(int groups_left) {
  if (me().product_waits++ == g.launch.faults.product) return;
  auto& groups = me().product_groups;
  while (groups.size() > static_cast<size_t>(groups_left)) {
    const auto group = std::move(groups.front());
    groups.pop_front();
    for (const auto& product : group) product();
  }
  Warp& warp = g.warps[me().warp];
  meet(warp.arrived, warp.meetings, warp.lanes,
       [] {});  // a product is done in all lanes or in none
}

void fence_shared_products() {
  me().hidden = me().unseen = false;
}

void barrier_init(uint32_t at, uint32_t arrivals) {
  shared(at, 8, 8, "mbarrier");
  g.barriers[{me().block, at}] = {
      .arrivals = arrivals, .missing = arrivals, .made = g.meetings, .copies = {}};
}

namespace {

void arrive(Barrier& b) {
  if (b.missing == 0) fail("mbarrier: more arrivals than it was made for");
  --b.missing;
  ++g.progress;
}

// Ends the phase if all have arrived and all bytes are there. Copies land when somebody first asks
// for them: no kernel may count on their being early.
bool end_phase(Barrier& b) {
  int64_t bytes = 0;
  for (const Copy& copy : b.copies) bytes += copy.bytes;
  if (b.missing > 0 || bytes != b.expected) return false;
  for (const Copy& copy : b.copies) perform(copy);
  b.copies.clear();
  b.missing = b.arrivals;
  b.expected = 0;
  ++b.phase;
  b.hidden = std::exchange(b.copied, false);
  ++g.progress;
  return true;
}

}  // namespace

void barrier_expect(uint32_t at, uint32_t bytes) {
  Barrier& b = barrier(at);
  arrive(b);
  b.expected += bytes;
}

void barrier_expect_more(uint32_t at, uint32_t bytes) {
  barrier(at).expected += bytes;
}

void barrier_arrive(uint32_t at) {
  Barrier& b = barrier(at);
  if (me().arrivals++ == g.launch.faults.arrival) return;
  arrive(b);
  if (b.copies.empty()) end_phase(b);
}

void barrier_arrive_copied(uint32_t at) {
  Barrier& b = barrier(at);
  const auto take = [&](std::vector<Copy>& copies) {
    for (const Copy& copy : copies) b.expected += copy.bytes;
    b.copied = b.copied || !copies.empty();
    b.copies.insert(b.copies.end(), copies.begin(), copies.end());
    copies.clear();
  };
  for (std::vector<Copy>& group : me().groups) take(group);
  me().groups.clear();
  take(me().open);
  arrive(b);
}

void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t valid, uint32_t at) {
  if (valid > 0) check_source(from, 16, "bulk copy");
  if (bytes % 16 != 0) fail("bulk copy: a size that is not a multiple of 16");
  Barrier& b = barrier(at);
  if (g.blocks[me().block].copies++ == g.launch.faults.copy) return;
  poison(to, bytes, "bulk copy");
  b.copies.push_back({me().block, to, bytes, valid, from});
}

void send(uint32_t block, uint32_t to, const void* from, uint32_t bytes, uint32_t at) {
  shared_of(block, to, bytes, bytes, "send");
  if (g.launch.cluster < 2) fail("send: no cluster");  // an illegal instruction of an H200
  Barrier& b = barrier_of(block, at);
  if (block != me().block && me().seen <= b.made) fail("send: no meeting since barrier_init");
  if (g.sends++ == g.launch.faults.send) return;
  std::memcpy(g.sent.emplace_back().data(), from, bytes);
  b.copies.push_back({block, to, bytes, bytes, g.sent.back().data()});
  ++g.progress;
}

void barrier_wait(uint32_t at, uint32_t parity) {
  Barrier& b = barrier(at);
  if (me().waits++ == g.launch.faults.wait) return;
  while (b.phase % 2 == parity) {
    if (!end_phase(b)) yield();
  }
  me().unseen = me().unseen || b.hidden;
}

}  // namespace tamis::sim
