// The host side of base/cuda/dev.h: every wrapper on the simulator, with device_products.h and
// device_floats.h.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "base/cuda/tensor_map.h"
#include "cuda_sim/sim.h"

#define TAMIS_GLOBAL inline
#define TAMIS_DEVICE inline
#define TAMIS_LAUNCH_BOUNDS(threads, blocks)
#define TAMIS_GRID_CONSTANT

namespace tamis::dev {

inline constexpr bool kBulkCopies = true;

struct alignas(16) Word4 {
  uint32_t x, y, z, w;
};
struct alignas(8) Word2 {
  uint32_t x, y;
};

inline uint32_t thread_index() {
  return sim::thread_index().x;
}
inline uint32_t block_index_x() {
  return sim::block_index().x;
}
inline uint32_t block_index_y() {
  return sim::block_index().y;
}
inline void sync_warp() {
  sim::sync_warp();
}
inline void sync_block() {
  sim::sync_block();
}
inline void fence_barrier_init() {}
inline void wait_for_previous() {}
inline void allow_next() {}

template <class T>
T load_shared(uint32_t at) {
  T value;
  std::memcpy(&value, sim::shared(at, sizeof(T), sizeof(T), "load"), sizeof(T));
  return value;
}
template <class T>
void store_shared(uint32_t at, T value) {
  std::memcpy(sim::shared(at, sizeof(T), sizeof(T), "store"), &value, sizeof(T));
}

inline uint32_t shared_address(uint32_t at) {
  return at;
}
template <class T>
T load_shared_at(uint32_t address) {
  return load_shared<T>(address);
}
template <int kFurther>
uint32_t load_shared_half_if(uint32_t wanted, uint32_t address) {
  return wanted != 0 ? load_shared<uint16_t>(address + kFurther) : 0xffffffffu;
}
inline uint32_t load_shared_word(uint32_t address) {
  return load_shared<uint32_t>(address);
}
inline void store_shared_word(uint32_t address, uint32_t word) {
  store_shared<uint32_t>(address, word);
}
inline void store_shared_word(uint32_t address, const Word2& words) {
  store_shared<Word2>(address, words);
}

inline void sync_cluster() {
  sim::sync_cluster();
}
inline uint32_t load_cluster(uint32_t block, uint32_t at) {
  uint32_t value;
  std::memcpy(&value, sim::shared_of(block, at, 4, 4, "load"), 4);
  return value;
}
inline Word4 load_cluster4(uint32_t block, uint32_t at) {
  Word4 value;
  std::memcpy(&value, sim::shared_of(block, at, 16, 16, "load"), 16);
  return value;
}
inline void load_cluster4_if(bool wanted, uint32_t block, uint32_t at, Word4& to) {
  if (wanted) to = load_cluster4(block, at);
}
inline void store_cluster(uint32_t block, uint32_t at, uint32_t value) {
  std::memcpy(sim::shared_of(block, at, 4, 4, "store"), &value, 4);
}

inline uint32_t add_shared(uint32_t at, uint32_t value) {
  const auto before = load_shared<uint32_t>(at);
  store_shared<uint32_t>(at, before + value);
  return before;
}
inline uint32_t swap_shared(uint32_t at, uint32_t expected, uint32_t wanted) {
  const auto before = load_shared<uint32_t>(at);
  if (before == expected) store_shared<uint32_t>(at, wanted);
  return before;
}
inline void prefetch(const void*) {}
inline void prefetch_range(const void*, uint32_t) {}
inline void count_shared(uint32_t at) {
  store_shared<uint32_t>(at, load_shared<uint32_t>(at) + 1);
}

inline void copy_async16(uint32_t to, const void* from, uint32_t valid) {
  sim::copy_async(to, from, 16, valid);
}
template <int kFurther>
void copy_async16_if(bool wanted, uint32_t to, const void* from) {
  if (wanted) {
    sim::copy_async(to + kFurther, static_cast<const uint8_t*>(from) + kFurther, 16, 16);
  }
}
inline void copy_async8_if(bool wanted, uint32_t to, const void* from) {
  if (wanted) sim::copy_async(to, from, 8, 8);
}
inline void commit_async() {
  sim::commit_async();
}
template <int kGroupsLeft>
void wait_async() {
  sim::wait_async(kGroupsLeft);
}

inline void barrier_init(uint32_t at) {
  sim::barrier_init(at, 1);
}
inline void barrier_expect(uint32_t at, uint32_t bytes) {
  sim::barrier_expect(at, bytes);
}
inline void barrier_wait(uint32_t at, uint32_t parity) {
  sim::barrier_wait(at, parity);
}
inline void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  sim::bulk_copy(to, from, bytes, bytes, barrier);
}

inline void barrier_init(uint32_t at, uint32_t arrivals) {
  sim::barrier_init(at, arrivals);
}
inline void barrier_arrive(uint32_t at) {
  sim::barrier_arrive(at);
}
inline void barrier_expect_more(uint32_t at, uint32_t bytes) {
  sim::barrier_expect_more(at, bytes);
}
inline void barrier_arrive_copied(uint32_t at) {
  sim::barrier_arrive_copied(at);
}
template <int kBarrier, int kThreads>
void sync_warps() {
  static_assert(kBarrier > 0 && kBarrier < 16 && kThreads % 32 == 0, "a barrier of whole warps");
  sim::sync_warps(kBarrier, kThreads);
}
template <int kThreads>
void sync_warps(uint32_t barrier) {
  sim::sync_warps(barrier, kThreads);
}
template <int kThreads>
void arrive_warps(uint32_t barrier) {
  sim::arrive_warps(barrier, kThreads);
}
inline void sync_cluster_unordered() {
  sim::sync_cluster();
}
inline void arrive_cluster_unordered() {
  sim::arrive_cluster();
}
inline void wait_cluster() {
  sim::wait_cluster();
}
inline void send_cluster(uint32_t block, uint32_t at, uint32_t value, uint32_t barrier) {
  sim::send(block, at, &value, sizeof value, barrier);
}
inline void send_cluster(uint32_t block, uint32_t at, const Word2& value, uint32_t barrier) {
  sim::send(block, at, &value, sizeof value, barrier);
}
inline void send_cluster(uint32_t block, uint32_t at, const Word4& value, uint32_t barrier) {
  sim::send(block, at, &value, sizeof value, barrier);
}
// The launch's part: what copies of boxes read here.
template <class Boxes>
TensorMap tensor_map(const Boxes& boxes) {
  static_assert(sizeof boxes <= sizeof(TensorMap));
  TensorMap map;
  std::memcpy(map.words, &boxes, sizeof boxes);
  return map;
}
inline void copy_boxes(uint32_t to, const MatrixBoxes& boxes, int32_t col, int32_t row,
                       uint32_t barrier) {
  if (to % 1024 != 0) sim::fail("box: misaligned shared memory");
  for (uint32_t i = 0; i < 8 * static_cast<uint32_t>(boxes.box_rows); ++i) {
    const int64_t of_row = row + i / 8, first = col + 8 * (i % 8);
    const int64_t left = of_row < boxes.rows ? boxes.cols - first : 0;
    const auto valid = static_cast<uint32_t>(left < 0 ? 0 : left > 8 ? 8 : left);
    const auto* from = static_cast<const uint16_t*>(boxes.data) + of_row * boxes.stride + first;
    sim::bulk_copy(to + i / 8 * 128 + 16 * (i % 8 ^ i / 8 % 8), valid > 0 ? from : nullptr, 16,
                   2 * valid, barrier);
  }
}
inline void copy_box(uint32_t to, const TensorMap& map, int32_t col, int32_t row,
                     uint32_t barrier) {
  MatrixBoxes boxes;
  std::memcpy(&boxes, map.words, sizeof boxes);
  copy_boxes(to, boxes, col, row, barrier);
}
inline void copy_head_box(uint32_t to, const TensorMap& map, int32_t col, int32_t row, int32_t head,
                          int32_t batch, uint32_t barrier) {
  HeadBoxes b;
  std::memcpy(&b, map.words, sizeof b);
  if (head >= b.heads || batch >= b.batches) sim::fail("box: no such head");
  const auto* data =
      static_cast<const uint16_t*>(b.data) + batch * b.batch_stride + head * b.head_stride;
  copy_boxes(to, {data, b.rows, b.cols, b.stride, b.box_rows}, col, row, barrier);
}
inline void copy_records(uint32_t to, const TensorMap& map, int32_t col, int32_t row,
                         uint32_t barrier) {
  RecordBoxes boxes;
  std::memcpy(&boxes, map.words, sizeof boxes);
  if (to % 128 != 0) sim::fail("records: misaligned shared memory");
  const auto bytes = static_cast<uint32_t>(boxes.record_bytes);
  for (int32_t i = 0; i < boxes.box_rows; ++i) {
    const bool inside = row + i < boxes.rows && col < boxes.cols;
    const auto* from =
        static_cast<const uint8_t*>(boxes.data) + ((row + i) * boxes.cols + col) * bytes;
    sim::bulk_copy(to + static_cast<uint32_t>(i) * bytes, inside ? from : nullptr, bytes,
                   inside ? bytes : 0, barrier);
  }
}
inline void store_box(const TensorMap& map, int32_t col, int32_t row, uint32_t from) {
  MatrixBoxes boxes;
  std::memcpy(&boxes, map.words, sizeof boxes);
  if (from % 1024 != 0) sim::fail("box: misaligned shared memory");
  sim::queue_box([=] {
    for (int32_t i = 0; i < boxes.box_rows && row + i < boxes.rows; ++i) {
      for (int32_t j = 0; j < kBoxCols && col + j < boxes.cols; ++j) {
        const auto at = static_cast<uint32_t>(128 * i + 16 * (j / 8 ^ i % 8) + 2 * (j % 8));
        auto* to = static_cast<uint16_t*>(const_cast<void*>(boxes.data));
        to[(row + i) * boxes.stride + col + j] = load_shared<uint16_t>(from + at);
      }
    }
  });
}
inline void wait_boxes_read() {
  sim::wait_boxes_read();
}
inline void prefetch_map(const TensorMap&) {}
template <int kRegisters>
void take_registers() {
  sim::take_registers(kRegisters);
}
template <int kRegisters>
void keep_registers() {
  sim::keep_registers(kRegisters);
}

template <class T>
T load_global(const T* from) {
  return *from;
}
template <class T>
T load_stream(const T* from) {
  return *from;
}
template <class T>
void load_stream_if(bool wanted, const T* from, T& to) {
  if (wanted) to = load_stream(from);
}
template <class T>
T load_volatile(const T* from) {
  return *from;
}
inline uint32_t in_register(uint32_t value) {
  return value;
}
inline const uint8_t* in_register(const uint8_t* value) {
  return value;
}
template <class T>
void store_volatile(T* to, T value) {
  sim::store_later(to, &value, sizeof value);
}
inline uint32_t atomic_add(uint32_t* to, uint32_t value) {
  sim::publish();
  const uint32_t before = *to;
  *to += value;
  return before;
}
inline uint32_t atomic_add_ordered(uint32_t* to, uint32_t value) {
  sim::fence_device();
  const uint32_t before = atomic_add(to, value);
  sim::fence_device();
  return before;
}

inline uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t byte = selector >> (4 * i) & 7u;
    result |= static_cast<uint32_t>(bytes >> (8 * byte) & 0xffu) << (8 * i);
  }
  return result;
}

inline uint32_t byte_select(uint32_t a, uint32_t b, uint32_t selector) {
  if ((selector & 0x8888u) != 0) sim::fail("byte_select: a digit of the selector is above 7");
  return byte_permute(a, b, selector);
}
inline uint32_t byte_pick(uint32_t a, uint32_t b, uint32_t selector) {
  return byte_select(a, b, selector & 0xffffu);
}
inline uint32_t shift_pair(uint32_t low, uint32_t high, uint32_t bits) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (bits % 32));
}
inline uint32_t shift_pair_whole(uint32_t low, uint32_t high, uint32_t bits) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (bits < 32 ? bits : 32));
}
inline uint32_t and_or(uint32_t a, uint32_t mask, uint32_t bits) {
  return (a & mask) | bits;
}
inline uint32_t prefix_step(uint32_t value, int distance) {
  const uint32_t lane = sim::thread_index().x % 32;
  const uint8_t* slots = sim::exchange(&value, sizeof value);
  if (lane < static_cast<uint32_t>(distance)) return value;
  uint32_t other;
  std::memcpy(&other, slots + (lane - distance) * sim::kSlotBytes, sizeof other);
  return value + other;
}

template <class T>
T from_lane(const uint8_t* slots, uint32_t lane) {
  T value;
  std::memcpy(&value, slots + lane * sim::kSlotBytes, sizeof value);
  return value;
}
inline float shuffle_xor(float value, int mask) {
  const uint32_t lane = sim::thread_index().x % 32;
  return from_lane<float>(sim::exchange(&value, sizeof value), lane ^ static_cast<uint32_t>(mask));
}
inline int32_t shuffle(int32_t value, int lane) {
  return from_lane<int32_t>(sim::exchange(&value, sizeof value), static_cast<uint32_t>(lane));
}
inline uint32_t ballot(bool mine) {
  const uint32_t said = mine ? 1 : 0;
  const uint8_t* slots = sim::exchange(&said, sizeof said);
  uint32_t bits = 0;
  for (uint32_t lane = 0; lane < 32; ++lane) bits |= from_lane<uint32_t>(slots, lane) << lane;
  return bits;
}
inline uint32_t warp_sum(uint32_t mine) {
  const uint8_t* slots = sim::exchange(&mine, sizeof mine);
  uint32_t sum = 0;
  for (uint32_t lane = 0; lane < 32; ++lane) sum += from_lane<uint32_t>(slots, lane);
  return sum;
}
inline uint32_t warp_max(uint32_t mine) {
  const uint8_t* slots = sim::exchange(&mine, sizeof mine);
  uint32_t most = 0;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const auto said = from_lane<uint32_t>(slots, lane);
    most = said > most ? said : most;
  }
  return most;
}
inline uint32_t max_halves(uint32_t a, uint32_t b) {
  const uint32_t low = (a & 0xffffu) > (b & 0xffffu) ? a & 0xffffu : b & 0xffffu;
  return low | ((a >> 16) > (b >> 16) ? a >> 16 : b >> 16) << 16;
}
inline int popcount(uint32_t bits) {
  return std::popcount(bits);
}
inline int32_t dot_bytes(uint32_t a, uint32_t b, int32_t sum) {
  for (int i = 0; i < 4; ++i)
    sum += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
  return sum;
}
inline uint32_t transpose(uint32_t pair) {
  const uint32_t lane = sim::thread_index().x % 32, row = lane / 4, col = lane % 4 * 2;
  const uint8_t* slots = sim::exchange(&pair, sizeof pair);
  uint32_t out = 0;
  for (uint32_t i = 0; i < 2; ++i) {  // element [col + i][row]
    const auto from = from_lane<uint32_t>(slots, (col + i) * 4 + row / 2);
    out |= (from >> (16 * (row % 2)) & 0xffffu) << (16 * i);
  }
  return out;
}

inline Word4 load_matrices(uint32_t at) {
  sim::shared(at, 16, 16, "ldmatrix");
  const uint8_t* slots = sim::exchange(&at, sizeof at);
  const uint32_t lane = sim::thread_index().x % 32;
  uint32_t out[4];
  for (uint32_t j = 0; j < 4; ++j) {
    out[j] = load_shared<uint32_t>(from_lane<uint32_t>(slots, 8 * j + lane / 4) + 4 * (lane % 4));
  }
  return {out[0], out[1], out[2], out[3]};
}

inline Word4 load_matrices_transposed(uint32_t at) {
  sim::shared(at, 16, 16, "ldmatrix");
  const uint8_t* slots = sim::exchange(&at, sizeof at);
  const uint32_t lane = sim::thread_index().x % 32, row = lane % 4 * 2, col = lane / 4;
  uint32_t out[4];
  for (uint32_t j = 0; j < 4; ++j) {
    out[j] = 0;
    for (uint32_t i = 0; i < 2; ++i) {
      const auto from = from_lane<uint32_t>(slots, 8 * j + row + i) + 2 * col;
      out[j] |= uint32_t{load_shared<uint16_t>(from)} << (16 * i);
    }
  }
  return {out[0], out[1], out[2], out[3]};
}

inline void store_matrices_transposed(uint32_t at, const Word4& from) {
  sim::shared(at, 16, 16, "stmatrix");
  const uint32_t lane = sim::thread_index().x % 32, row = lane % 4 * 2, col = lane / 4;
  const uint8_t* slots = sim::exchange(&at, sizeof at);
  const uint32_t words[4] = {from.x, from.y, from.z, from.w};
  for (uint32_t j = 0; j < 4; ++j) {
    for (uint32_t i = 0; i < 2; ++i) {
      const auto to = from_lane<uint32_t>(slots, 8 * j + row + i) + 2 * col;
      store_shared<uint16_t>(to, static_cast<uint16_t>(words[j] >> (16 * i)));
    }
  }
}

}  // namespace tamis::dev

#include "cuda_sim/device_floats.h"
#include "cuda_sim/device_products.h"
