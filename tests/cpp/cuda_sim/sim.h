// Runs CUDA kernels on this CPU: one fiber per CUDA thread, blocks one after another.
//
// It is stricter than a GPU where a kernel could be right by luck: shared memory starts as NaN, an
// asynchronous copy turns its destination into NaN until it is waited for, an asynchronous product
// its sums, and reads its operands only then; warps and lanes run in random order and run ahead of
// each other, some warps slowly, every access to shared memory is checked, and what a thread leaves
// for other blocks lands only when fences, barriers and a ticket have ordered it. It cannot see
// timing, bank conflicts, other races in global memory between blocks, or how tensor cores round.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace tamis::sim {

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

// What a launch leaves out on purpose, to show that a test would notice; -1 is nothing.
struct Faults {
  int barrier = -1;  // this sync_block or sync_warps of every thread does nothing
  int warp = -1;     // this sync_warp likewise
  int cluster = -1;  // this sync_cluster likewise, or its two halves
  int send = -1;     // this write to another block's barrier never happens
  int wait = -1;     // this wait for copies of every thread does nothing
  int copy = -1;     // this asynchronous copy of the block never happens
  int product = -1;  // this wait for products of every thread does nothing
  int fence = -1;    // this fence_device of every thread does nothing
  int arrival = -1;  // this arrival of every thread at a barrier does not happen
};

struct Launch {
  Dim3 grid = {}, block = {};
  size_t shared_bytes = 0;
  uint64_t seed = 1;  // of the order in which warps and lanes run
  Faults faults = {};
  uint32_t cluster = 1;   // neighbours in x that run together
  uint32_t resident = 1;  // blocks that share the registers of an SM
};

// Calls `kernel` once per thread. Returns what went wrong, empty if nothing.
std::string launch(const Launch& launch, const std::function<void()>& kernel);

// What follows is for the device side, called from inside a kernel.

extern const std::array<float, 0x10000> f16_values;  // of every f16

[[noreturn]] void fail(const std::string& what);

// Of the running thread, set at each switch: kernels ask for little else so often.
struct Here {
  Dim3 thread, block;
  uint8_t* shared = nullptr;
  size_t shared_bytes = 0;
};
extern Here here;

inline Dim3 thread_index() {
  return here.thread;
}
inline Dim3 block_index() {
  return here.block;
}

// Shared memory at byte offset `at`, checked for bounds and alignment.
void check_shared(uint32_t at, size_t bytes, size_t alignment, size_t all, const char* what);
inline uint8_t* shared(uint32_t at, size_t bytes, size_t alignment, const char* what) {
  if (at + bytes > here.shared_bytes || at % alignment != 0) {
    check_shared(at, bytes, alignment, here.shared_bytes, what);
  }
  return here.shared + at;
}

void sync_block();
void sync_warp();
// sync_block of that many threads at barrier 1 to 15 of the block. What they wrote to global memory
// is not passed on there.
void sync_warps(uint32_t barrier, uint32_t threads);
// Counts among those threads and goes on.
void arrive_warps(uint32_t barrier, uint32_t threads);

// As many registers of a thread from here on, more of what other warps of the block gave away, once
// there are enough, or fewer. Before, all that a kernel of so many threads can have.
void take_registers(uint32_t registers);
void keep_registers(uint32_t registers);

// A write to global memory that others may see only behind a fence of this thread, or of one that
// a barrier has let pass since, and then an atomic operation, of the fence's thread or again behind
// a barrier: publish() comes before every atomic operation. What is never published lands when the
// launch ends.
inline constexpr size_t kStoreBytes = 16;
void store_later(void* to, const void* from, size_t bytes);
void fence_device();
void publish();

// The same of a block of this thread's cluster, and a meeting of all its blocks.
uint8_t* shared_of(uint32_t block, uint32_t at, size_t bytes, size_t alignment, const char* what);
void arrive_cluster();
void wait_cluster();
void sync_cluster();

// Deposits `bytes` <= kSlotBytes of this lane and returns lane 0's deposit once all 32 are there;
// lane i's lies i * kSlotBytes further. Valid until the warp's next exchange.
inline constexpr size_t kSlotBytes = 48;
const uint8_t* exchange(const void* mine, size_t bytes);

// cp.async: `valid` bytes from `from`, zeros up to `bytes`.
void copy_async(uint32_t to, const void* from, uint32_t bytes, uint32_t valid);
void commit_async();
void wait_async(int groups_left);

// mbarrier, and the bulk copies that report to one: `valid` bytes, zeros up to `bytes`.
void barrier_init(uint32_t at, uint32_t arrivals);
void barrier_expect(uint32_t at, uint32_t bytes);
void barrier_expect_more(uint32_t at, uint32_t bytes);  // without an arrival
void barrier_arrive(uint32_t at);
// Of this thread's cp.async, which are the barrier's from here on: products see what they bring
// only behind a fence of whoever waited.
void barrier_arrive_copied(uint32_t at);
void barrier_wait(uint32_t at, uint32_t parity);
void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t valid, uint32_t barrier);
// A write to shared memory of that block of the cluster that reports to its barrier, as a copy
// does.
void send(uint32_t block, uint32_t to, const void* from, uint32_t bytes, uint32_t barrier);

// A copy out of shared memory, which is read when this thread waits for all of its own; it does so
// before it ends.
void queue_box(std::function<void()> copy);
void wait_boxes_read();

// Products of a warpgroup: queued with what they need, done when their group is waited for.
void fence_products();
void queue_product(std::function<void()> product);
std::shared_ptr<void>& sums_at(const void* sums);  // of this thread, what running products keep
void commit_products();
void wait_products(int groups_left);
// Before a barrier, after which products read what this thread wrote to shared memory.
void fence_shared_products();

}  // namespace tamis::sim
