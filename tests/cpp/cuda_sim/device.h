// The host side of base/cuda/dev.h: every wrapper on the simulator.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "base/numeric.h"
#include "cuda_sim/sim.h"

#define TAMIS_GLOBAL
#define TAMIS_DEVICE inline
#define TAMIS_LAUNCH_BOUNDS(threads, blocks)

namespace tamis::dev {

struct alignas(16) Word4 {
  uint32_t x, y, z, w;
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
inline void fence_device() {}
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

inline void copy_async16(uint32_t to, const void* from, uint32_t valid) {
  sim::copy_async(to, from, 16, valid);
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
  sim::bulk_copy(to, from, bytes, barrier);
}

template <class T>
T load_global(const T* from) {
  return *from;
}
template <class T>
T load_volatile(const T* from) {
  return *from;
}
inline uint32_t atomic_add(uint32_t* to, uint32_t value) {
  const uint32_t before = *to;
  *to += value;
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

inline uint32_t prefix_step(uint32_t value, int distance) {
  const uint32_t lane = sim::thread_index().x % 32;
  const uint8_t* slots = sim::exchange(&value, sizeof value);
  if (lane < static_cast<uint32_t>(distance)) return value;
  uint32_t other;
  std::memcpy(&other, slots + (lane - distance) * sim::kSlotBytes, sizeof other);
  return value + other;
}

// One m16n8k16 fragment of a lane, deposited for the others.
struct Fragment {
  uint32_t a[4], b[2];
};
static_assert(sizeof(Fragment) <= sim::kSlotBytes);

template <float (*kToF32)(uint16_t)>
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Fragment mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const uint8_t* slots = sim::exchange(&mine, sizeof mine);
  const auto fragment = [&](int lane) {
    Fragment f;
    std::memcpy(&f, slots + lane * sim::kSlotBytes, sizeof f);
    return f;
  };
  const auto half = [](uint32_t pair, int i) {
    return kToF32(static_cast<uint16_t>(pair >> (16 * i)));
  };
  const int lane = static_cast<int>(sim::thread_index().x % 32), group = lane / 4, t = lane % 4;
  for (int k2 = 0; k2 < 8; ++k2) {  // columns 2 * k2 and 2 * k2 + 1
    const Fragment rows = fragment(group * 4 + k2 % 4);
    for (int i = 0; i < 2; ++i) {
      for (int n = 0; n < 2; ++n) {
        const float b = half(fragment((2 * t + n) * 4 + k2 % 4).b[k2 / 4], i);
        c[n] += half(rows.a[k2 / 4 * 2], i) * b;
        c[2 + n] += half(rows.a[k2 / 4 * 2 + 1], i) * b;
      }
    }
  }
}

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<f32_from_bf16>(c, a, b0, b1);
}
inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<f32_from_f16>(c, a, b0, b1);
}

inline float bf16_to_f32(uint16_t h) {
  return f32_from_bf16(h);
}
inline float f16_to_f32(uint16_t h) {
  return f32_from_f16(h);
}
inline uint16_t f32_to_bf16(float f) {
  return bf16_from_f32(f);
}
inline uint16_t f32_to_f16(float f) {
  return f16_from_f32(f);
}

}  // namespace tamis::dev
