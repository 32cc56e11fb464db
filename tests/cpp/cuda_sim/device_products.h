// Tensor cores on the simulator: the host side of dev_products.h and dev_group.h, a part of
// device.h, which includes it.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>

#include "base/numeric.h"
#include "cuda_sim/sim.h"

namespace tamis::dev {

// One m16n8k16 fragment of a lane, deposited for the others.
struct Fragment {
  uint32_t a[4], b[2];
};
static_assert(sizeof(Fragment) <= sim::kSlotBytes);

// The same in f32, so that a value is converted once and not by each lane that multiplies it.
struct FloatFragment {
  float a[8], b[4];
};
static_assert(sizeof(FloatFragment) <= sim::kSlotBytes);

template <float (*kToF32)(uint16_t)>
float half(uint32_t pair, uint32_t i) {
  return kToF32(static_cast<uint16_t>(pair >> (16 * i)));
}

// What the four lanes of a row deposited.
template <class T>
std::array<T, 4> from_row(const uint8_t* slots, uint32_t row) {
  std::array<T, 4> all;
  for (uint32_t i = 0; i < 4; ++i) all[i] = from_lane<T>(slots, 4 * row + i);
  return all;
}

template <float (*kToF32)(uint16_t)>
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  FloatFragment mine;
  for (uint32_t i = 0; i < 8; ++i) mine.a[i] = half<kToF32>(a[i / 2], i % 2);
  for (uint32_t i = 0; i < 4; ++i) mine.b[i] = half<kToF32>(i < 2 ? b0 : b1, i % 2);
  const uint8_t* slots = sim::exchange(&mine, sizeof mine);
  const uint32_t lane = sim::thread_index().x % 32, group = lane / 4, t = lane % 4;
  const auto rows = from_row<FloatFragment>(slots, group);
  for (uint32_t n = 0; n < 2; ++n) {
    const auto columns = from_row<FloatFragment>(slots, 2 * t + n);
    for (uint32_t k = 0; k < 16; ++k) {
      const uint32_t of = k % 8 / 2, i = k / 8 * 4 + k % 2;
      c[n] += rows[of].a[i] * columns[of].b[k / 8 * 2 + k % 2];
      c[2 + n] += rows[of].a[i + 2] * columns[of].b[k / 8 * 2 + k % 2];
    }
  }
}

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<f32_from_bf16>(c, a, b0, b1);
}
inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<from_f16>(c, a, b0, b1);
}

// Byte: of the first operand.
template <class Byte>
void multiply_bytes(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const Fragment mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const uint8_t* slots = sim::exchange(&mine, sizeof mine);
  const uint32_t lane = sim::thread_index().x % 32, group = lane / 4, t = lane % 4;
  for (uint32_t k = 0; k < 32; ++k) {
    const auto rows = from_lane<Fragment>(slots, group * 4 + k % 16 / 4);
    for (uint32_t n = 0; n < 2; ++n) {
      const auto column = from_lane<Fragment>(slots, (2 * t + n) * 4 + k % 16 / 4);
      const int32_t b = static_cast<int8_t>(column.b[k / 16] >> (8 * (k % 4)));
      for (uint32_t high = 0; high < 2; ++high) {
        const auto x = static_cast<Byte>(rows.a[k / 16 * 2 + high] >> (8 * (k % 4)));
        c[2 * high + n] += static_cast<int32_t>(x) * b;
      }
    }
  }
}
inline void mma_bytes(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_bytes<uint8_t>(c, a, b0, b1);
}
inline void mma_signed_bytes(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_bytes<int8_t>(c, a, b0, b1);
}

// m16n8k32 with the second operand's places of a 2:4 row read from the metadata of lanes 4g, 4g
// + 1.
struct SparseFragment {
  uint32_t a[4], places;
};
static_assert(sizeof(SparseFragment) <= sim::kSlotBytes);

// The same of one lane in f32, and what its row of the first operand says in all.
struct SparseFloats {
  float a[8];
  uint32_t places;
};
static_assert(sizeof(SparseFloats) <= sim::kSlotBytes);

// What a lane multiplies of the first operand: 16 kept elements of two rows and their columns.
struct SparseRows {
  float w[2][16];
  uint32_t cols[2][16];
};
template <float (*kToF32)(uint16_t)>
SparseRows sparse_rows(const Word4& a, uint32_t places, uint32_t first) {
  SparseFloats mine{{}, places};
  const uint32_t pairs[4] = {a.x, a.y, a.z, a.w};
  for (uint32_t i = 0; i < 8; ++i) mine.a[i] = half<kToF32>(pairs[i / 2], i % 2);
  const uint8_t* slots = sim::exchange(&mine, sizeof mine);
  const auto of = from_row<SparseFloats>(slots, sim::thread_index().x % 32 / 4);
  SparseRows rows;
  for (uint32_t high = 0; high < 2; ++high) {     // row group + 8 * high
    for (uint32_t kept = 0; kept < 16; ++kept) {  // its kept elements in order
      const uint32_t said = of[first + kept / 8].places;
      rows.w[high][kept] = of[kept / 2 % 4].a[kept / 8 * 4 + 2 * high + kept % 2];
      rows.cols[high][kept] = kept / 2 * 4 + (said >> (16 * high + 2 * (kept % 8)) & 3);
    }
  }
  return rows;
}

template <float (*kToF32)(uint16_t)>
void multiply_sparse(float (&c)[4], const Word4& a, const Word4& b, uint32_t places,
                     uint32_t first) {
  const SparseRows rows = sparse_rows<kToF32>(a, places, first);
  const uint32_t pairs[4] = {b.x, b.y, b.z, b.w};
  std::array<float, 8> mine;
  for (uint32_t i = 0; i < 8; ++i) mine[i] = half<kToF32>(pairs[i / 2], i % 2);
  const uint8_t* slots = sim::exchange(&mine, sizeof mine);
  const uint32_t t = sim::thread_index().x % 4;
  for (uint32_t n = 0; n < 2; ++n) {
    const auto column = from_row<std::array<float, 8>>(slots, 2 * t + n);
    for (uint32_t high = 0; high < 2; ++high) {
      for (uint32_t kept = 0; kept < 16; ++kept) {
        const uint32_t col = rows.cols[high][kept];
        c[2 * high + n] += rows.w[high][kept] * column[col % 8 / 2][col / 8 * 2 + col % 2];
      }
    }
  }
}
template <int kSelector>
void mma_sparse_bf16(float (&c)[4], const Word4& a, const Word4& b, uint32_t places) {
  multiply_sparse<f32_from_bf16>(c, a, b, places, 2 * kSelector);
}
template <int kSelector>
void mma_sparse_f16(float (&c)[4], const Word4& a, const Word4& b, uint32_t places) {
  multiply_sparse<from_f16>(c, a, b, places, 2 * kSelector);
}

// m16n8k64 of bytes; places of columns 32c to 32c + 31 of row g + 8h from lane 4g + 2c + h.
inline void mma_sparse_bytes(int32_t (&c)[4], const Word4& a, const Word4& b, uint32_t places) {
  const SparseFragment mine{{a.x, a.y, a.z, a.w}, places};
  const uint8_t* slots = sim::exchange(&mine, sizeof mine);
  const uint32_t lane = sim::thread_index().x % 32, group = lane / 4, t = lane % 4;
  const auto rows = from_row<SparseFragment>(slots, group);
  slots = sim::exchange(&b, sizeof b);
  const auto byte = [](uint32_t word, uint32_t i) {
    return static_cast<int32_t>(static_cast<int8_t>(word >> (8 * i)));
  };
  for (uint32_t high = 0; high < 2; ++high) {
    for (uint32_t kept = 0; kept < 32; ++kept) {
      const uint32_t word = rows[kept / 4 % 4].a[kept / 16 * 2 + high];
      const uint32_t said = rows[kept / 16 * 2 + high].places;
      const uint32_t col = kept / 2 * 4 + (said >> (2 * (kept % 16)) & 3);
      for (uint32_t n = 0; n < 2; ++n) {
        uint32_t from[4];
        std::memcpy(from, slots + ((2 * t + n) * 4 + col % 16 / 4) * sim::kSlotBytes, sizeof from);
        c[2 * high + n] += byte(word, kept % 4) * byte(from[col / 16], col % 4);
      }
    }
  }
}

// ---- products of warpgroups: done when they are waited for, from the fragments and the shared
// memory as they are then; until then the sums are NaN.

inline void fence_products() {
  sim::fence_products();
}
inline void commit_products() {
  sim::commit_products();
}
inline void fence_shared_products() {
  sim::fence_shared_products();
}
template <int kGroupsLeft, int kTiles>
void wait_products(float (&)[kTiles][4]) {
  sim::wait_products(kGroupsLeft);
}

template <int kGroupsLeft, int kTiles>
void wait_older_products(float (&)[kTiles][4]) {
  sim::wait_products(kGroupsLeft);
}

inline uint64_t matrix_at(uint32_t at) {
  return at;
}
inline uint64_t matrix_of_rows(uint32_t at, uint32_t part_bytes) {
  return at | uint64_t{part_bytes} << 32;
}
inline uint64_t further(uint64_t matrix, uint32_t bytes) {
  return matrix + bytes;
}
// Where byte `at` of a matrix is that begins at a multiple of 1024.
inline uint32_t swizzled(uint32_t at) {
  return at ^ (at >> 7 & 7) << 4;
}
// kCount elements in a row from byte `at` of such a matrix, which is a multiple of 16.
template <float (*kToF32)(uint16_t), uint32_t kCount>
std::array<float, kCount> load_row(uint32_t at) {
  std::array<float, kCount> row;
  for (uint32_t i = 0; i < kCount; i += 8) {
    const auto* from = sim::shared(swizzled(at + 2 * i), 16, 16, "product");
    uint16_t chunk[8];
    std::memcpy(chunk, from, sizeof chunk);
    for (uint32_t j = 0; j < 8; ++j) row[i + j] = kToF32(chunk[j]);
  }
  return row;
}

// Queues what adds to c.
template <int kTiles, class Product>
void queue_group(float (&c)[kTiles][4], const Product& product) {
  struct Sums {
    float of[kTiles][4];
    int running = 0;  // products that add to them
  };
  // Products that follow each other add up aside; what a kernel sees meanwhile is NaN.
  auto& found = sim::sums_at(&c);
  if (!found) found = std::make_shared<Sums>();
  Sums& sums = *static_cast<Sums*>(found.get());
  if (sums.running++ == 0) std::memcpy(sums.of, c, sizeof sums.of);
  for (auto& tile : c) {
    for (float& sum : tile) sum = std::bit_cast<float>(0xffffffffu);
  }
  const auto whole = [&c, &sums, product] {
    product(sums.of);
    if (--sums.running == 0) std::memcpy(c, sums.of, sizeof sums.of);
  };
  sim::queue_product(whole);
}

template <float (*kToF32)(uint16_t), int kTiles>
void multiply_group(float (&c)[kTiles][4], const Word4& a, uint32_t b, const uint32_t& places,
                    uint32_t first) {
  queue_group(c, [&a, &places, b, first](float (&sums)[kTiles][4]) {
    const SparseRows rows = sparse_rows<kToF32>(a, places, first);
    const uint32_t t = sim::thread_index().x % 4;
    for (uint32_t tile = 0; tile < kTiles; ++tile) {
      for (uint32_t n = 0; n < 2; ++n) {
        const auto x = load_row<kToF32, 32>(b + 1024 * tile + 128 * (2 * t + n));
        for (uint32_t kept = 0; kept < 16; ++kept) {
          sums[tile][n] += rows.w[0][kept] * x[rows.cols[0][kept]];
          sums[tile][2 + n] += rows.w[1][kept] * x[rows.cols[1][kept]];
        }
      }
    }
  });
}
template <int kSelector, int kTiles>
void group_sparse_bf16(float (&c)[kTiles][4], const Word4& a, uint64_t b, const uint32_t& places) {
  multiply_group<f32_from_bf16>(c, a, static_cast<uint32_t>(b), places, 2 * kSelector);
}
template <int kSelector, int kTiles>
void group_sparse_f16(float (&c)[kTiles][4], const Word4& a, uint64_t b, const uint32_t& places) {
  multiply_group<from_f16>(c, a, static_cast<uint32_t>(b), places, 2 * kSelector);
}

// What a lane multiplies of a first operand in registers: 16 elements of two rows.
template <float (*kToF32)(uint16_t)>
std::array<std::array<float, 16>, 2> dense_rows(const Word4& a) {
  std::array<float, 8> mine;
  const uint32_t pairs[4] = {a.x, a.y, a.z, a.w};
  for (uint32_t i = 0; i < 8; ++i) mine[i] = half<kToF32>(pairs[i / 2], i % 2);
  const uint8_t* slots = sim::exchange(&mine, sizeof mine);
  const auto of = from_row<std::array<float, 8>>(slots, sim::thread_index().x % 32 / 4);
  std::array<std::array<float, 16>, 2> rows;
  for (uint32_t high = 0; high < 2; ++high) {
    for (uint32_t k = 0; k < 16; ++k) {
      rows[high][k] = of[k / 2 % 4][k / 8 * 4 + 2 * high + k % 2];
    }
  }
  return rows;
}
// Adds their products with the second operand's rows, each a column of the sums.
template <float (*kToF32)(uint16_t), int kTiles>
void multiply_rows(float (&sums)[kTiles][4], const std::array<std::array<float, 16>, 2>& w,
                   uint32_t b) {
  const uint32_t t = sim::thread_index().x % 4;
  for (uint32_t tile = 0; tile < kTiles; ++tile) {
    for (uint32_t n = 0; n < 2; ++n) {
      const auto x = load_row<kToF32, 16>(b + 1024 * tile + 128 * (2 * t + n));
      for (uint32_t k = 0; k < 16; ++k) {
        sums[tile][n] += w[0][k] * x[k];
        sums[tile][2 + n] += w[1][k] * x[k];
      }
    }
  }
}

template <float (*kToF32)(uint16_t), int kTiles>
void multiply_dense_group(float (&c)[kTiles][4], const Word4& a, uint32_t b) {
  queue_group(c, [&a, b](float (&sums)[kTiles][4]) {
    multiply_rows<kToF32>(sums, dense_rows<kToF32>(a), b);
  });
}
template <int kTiles>
void group_bf16(float (&c)[kTiles][4], const Word4& a, uint64_t b) {
  multiply_dense_group<f32_from_bf16>(c, a, static_cast<uint32_t>(b));
}
template <int kTiles>
void group_f16(float (&c)[kTiles][4], const Word4& a, uint64_t b) {
  multiply_dense_group<from_f16>(c, a, static_cast<uint32_t>(b));
}

template <float (*kToF32)(uint16_t), int kTiles>
void multiply_rows_group(float (&c)[kTiles][4], const Word4& a, uint64_t b) {
  queue_group(c, [&a, b](float (&sums)[kTiles][4]) {
    const auto w = dense_rows<kToF32>(a);
    const uint32_t t = sim::thread_index().x % 4;
    const auto at = static_cast<uint32_t>(b), part_bytes = static_cast<uint32_t>(b >> 32);
    for (uint32_t k = 0; k < 16; ++k) {
      for (uint32_t tile = 0; tile < kTiles; ++tile) {
        const uint32_t col = 8 * tile + 2 * t;
        const uint32_t from = at + col / 64 * part_bytes + 128 * k + 2 * (col % 64);
        const auto pair = load_shared<uint32_t>(swizzled(from));
        for (uint32_t n = 0; n < 2; ++n) {
          sums[tile][n] += w[0][k] * half<kToF32>(pair, n);
          sums[tile][2 + n] += w[1][k] * half<kToF32>(pair, n);
        }
      }
    }
  });
}
template <int kTiles>
void group_rows_bf16(float (&c)[kTiles][4], const Word4& a, uint64_t b) {
  multiply_rows_group<f32_from_bf16>(c, a, b);
}
template <int kTiles>
void group_rows_f16(float (&c)[kTiles][4], const Word4& a, uint64_t b) {
  multiply_rows_group<from_f16>(c, a, b);
}

template <float (*kToF32)(uint16_t), bool kAdds, int kTiles>
void multiply_shared_group(float (&c)[kTiles][4], uint32_t a, uint32_t b) {
  queue_group(c, [a, b](float (&sums)[kTiles][4]) {
    if (!kAdds) std::memset(sums, 0, sizeof sums);
    const uint32_t thread = sim::thread_index().x, row = thread / 32 % 4 * 16 + thread % 32 / 4;
    multiply_rows<kToF32>(
        sums, {load_row<kToF32, 16>(a + 128 * row), load_row<kToF32, 16>(a + 128 * (row + 8))}, b);
  });
}
template <bool kAdds, int kTiles>
void group_shared_bf16(float (&c)[kTiles][4], uint64_t a, uint64_t b) {
  multiply_shared_group<f32_from_bf16, kAdds>(c, static_cast<uint32_t>(a),
                                              static_cast<uint32_t>(b));
}
template <bool kAdds, int kTiles>
void group_shared_f16(float (&c)[kTiles][4], uint64_t a, uint64_t b) {
  multiply_shared_group<from_f16, kAdds>(c, static_cast<uint32_t>(a), static_cast<uint32_t>(b));
}

}  // namespace tamis::dev
