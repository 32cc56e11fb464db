// The state of the engine, of one cluster at a time: sim.cc makes and runs it, sim_copies.cc has
// what its threads ask of copies, barriers and products.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda_sim/fiber.h"
#include "cuda_sim/sim.h"

namespace tamis::sim {

inline constexpr uint32_t kLanes = 32;
inline constexpr uint8_t kPoison = 0xff;  // all ones: NaN in bf16, f16 and f32

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

struct Thread {
  Fiber fiber;
  bool done = false;
  Dim3 index;
  uint32_t until_slow = 0;                 // places that it may pass; 0: all
  uint32_t lane = 0, warp = 0, block = 0;  // warp: of the cluster's; block: of the cluster
  int barriers = 0, clusters = 0, waits = 0, fences = 0, arrivals = 0;  // met so far
  int warps = 0;
  Stores stores;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
  std::vector<std::function<void()>> boxes;     // on their way out of shared memory
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
  uint32_t asleep = 0;     // rounds to come in which it does not run
  uint32_t registers = 0;  // of a thread
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
  int64_t coming = 0;  // bytes of those copies
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
  uint32_t hiding = 0;     // threads that are `hidden`
  uint32_t registers = 0;  // of a thread, all that warps have given away
  Stores stores;           // of threads that have met since
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

extern Cluster g;

inline Thread& me() {
  return g.threads[g.current];
}

inline void yield() {
  me().fiber.leave();
}

// A place where its warp may become slow while others go on: behind what it tells them, before it
// waits. The lanes of a warp stop at the same.
inline void linger() {
  if (me().until_slow == 0 || --me().until_slow > 0) return;
  g.warps[me().warp].asleep = 1u << g.random() % 6;
  ++g.progress;
  yield();
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

}  // namespace tamis::sim
