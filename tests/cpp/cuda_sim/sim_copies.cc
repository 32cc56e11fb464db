// Asynchronous copies, the barriers that they report to, and products of warpgroups.
#include <cstring>
#include <utility>

#include "cuda_sim/sim_state.h"

namespace tamis::sim {
namespace {

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

// A copy that its barrier waits for.
void add_copy(Barrier& b, const Copy& copy) {
  b.copies.push_back(copy);
  b.coming += copy.bytes;
}

// Whether this thread has written what products do not see yet.
void hide(bool hidden) {
  if (std::exchange(me().hidden, hidden) != hidden) g.blocks[me().block].hiding += hidden ? 1 : -1;
}

}  // namespace

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
    hide(true);
  }
}

void queue_box(std::function<void()> copy) {
  me().boxes.push_back(std::move(copy));
}

void wait_boxes_read() {
  if (me().waits++ == g.launch.faults.wait) return;
  for (const auto& copy : std::exchange(me().boxes, {})) copy();
}

void fence_products() {
  me().fenced = true;
}

void queue_product(std::function<void()> product) {
  if (!me().fenced) fail("product: no fence between its registers' writes and it");
  if (g.blocks[me().block].hiding > 0) fail("product: a copy without a fence");
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
  hide(false);
  me().unseen = false;
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
  if (b.missing > 0 || b.coming != b.expected) return false;
  for (const Copy& copy : b.copies) perform(copy);
  b.copies.clear();
  b.coming = 0;
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
  linger();
}

void barrier_expect_more(uint32_t at, uint32_t bytes) {
  barrier(at).expected += bytes;
}

void barrier_arrive(uint32_t at) {
  Barrier& b = barrier(at);
  if (me().arrivals++ == g.launch.faults.arrival) return;
  arrive(b);
  if (b.copies.empty()) end_phase(b);
  linger();
}

void barrier_arrive_copied(uint32_t at) {
  Barrier& b = barrier(at);
  const auto take = [&](std::vector<Copy>& copies) {
    b.copied = b.copied || !copies.empty();
    for (const Copy& copy : copies) {
      b.expected += copy.bytes;
      add_copy(b, copy);
    }
    copies.clear();
  };
  for (std::vector<Copy>& group : me().groups) take(group);
  me().groups.clear();
  take(me().open);
  arrive(b);
  if (b.copies.empty()) end_phase(b);
  linger();
}

void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t valid, uint32_t at) {
  if (valid > 0) check_source(from, 16, "bulk copy");
  if (bytes % 16 != 0) fail("bulk copy: a size that is not a multiple of 16");
  Barrier& b = barrier(at);
  if (g.blocks[me().block].copies++ == g.launch.faults.copy) return;
  poison(to, bytes, "bulk copy");
  add_copy(b, {me().block, to, bytes, valid, from});
}

void send(uint32_t block, uint32_t to, const void* from, uint32_t bytes, uint32_t at) {
  shared_of(block, to, bytes, bytes, "send");
  if (g.launch.cluster < 2) fail("send: no cluster");  // an illegal instruction of an H200
  Barrier& b = barrier_of(block, at);
  if (block != me().block && me().seen <= b.made) fail("send: no meeting since barrier_init");
  if (g.sends++ == g.launch.faults.send) return;
  std::memcpy(g.sent.emplace_back().data(), from, bytes);
  add_copy(b, {block, to, bytes, bytes, g.sent.back().data()});
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
