// sparse_mlp of one token in one pass: a block takes its neurons through all three matrices, so
// nothing waits for other blocks before the sum of all. gate and up: dot products as in mlp.cuh, up
// only of the neurons that count, listed in shared memory. down: a thread has eight columns of each
// kPassColumns and adds the listed rows in order, f32. Then a small kernel adds the blocks' sums,
// in their order. Needs: what mlp.cuh needs; at most kMostPassParts * kPassColumns outputs.
#pragma once

#include "ops/sparse_mlp/mlp.cuh"

namespace tamis {

inline constexpr uint32_t kPassListAt = kDotListAt + 16;  // after how many are listed

// What a neuron of the block's list has: which, and its activation, later times its product with
// up.
struct PassRows {
  int32_t count;
  static TAMIS_DEVICE uint32_t at(int32_t i) { return kPassListAt + 8 * static_cast<uint32_t>(i); }
  TAMIS_DEVICE int32_t id(int32_t i) const { return dev::load_shared<int32_t>(at(i)); }
  TAMIS_DEVICE float factor(int32_t i) const { return dev::load_shared<float>(at(i) + 4); }
};

// Rows of down that are on their way: eight loads of 16 bytes a thread.
template <int kParts>
struct PassStep {
  static constexpr int kRows = 8 / kParts;
  dev::Word4 w[kRows][kParts];
};

template <int kParts>
TAMIS_DEVICE void request_down(const MlpParams& p, const PassRows& rows, int32_t first,
                               PassStep<kParts>& s) {
  const uint32_t column = 8 * dev::thread_index();
#pragma unroll
  for (int i = 0; i < PassStep<kParts>::kRows; ++i) {
    const bool exists = first + i < rows.count;
    const uint16_t* row = exists ? p.down + int64_t{rows.id(first + i)} * p.d : p.down;
#pragma unroll
    for (uint32_t part = 0; part < kParts; ++part) {
      s.w[i][part] = {0, 0, 0, 0};
      if (exists && column + kPassColumns * part < static_cast<uint32_t>(p.d)) {
        s.w[i][part] = dev::load_stream(
            reinterpret_cast<const dev::Word4*>(row + column + kPassColumns * part));
      }
    }
  }
}

template <DType kType, int kParts>
TAMIS_DEVICE void add_down(const PassRows& rows, int32_t first, const PassStep<kParts>& s,
                           float (&sums)[kParts][8]) {
#pragma unroll
  for (int i = 0; i < PassStep<kParts>::kRows; ++i) {
    const float z = first + i < rows.count ? rows.factor(first + i) : 0.0f;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const uint32_t words[4] = {s.w[i][part].x, s.w[i][part].y, s.w[i][part].z, s.w[i][part].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& low = sums[part][2 * j];
        float& high = sums[part][2 * j + 1];
        low = dev::fma(z, widen<kType>(static_cast<uint16_t>(words[j])), low);
        high = dev::fma(z, widen<kType>(static_cast<uint16_t>(words[j] >> 16)), high);
      }
    }
  }
}

// Grid [blocks] of kDotThreads.
template <DType kType, int kParts>
TAMIS_DEVICE void mlp_pass(const MlpParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  load_tokens(p, p.up_x_at);
  const auto block = static_cast<int32_t>(dev::block_index_x());
  const uint32_t thread = dev::thread_index(), lane = thread % 32;
  const int32_t begin = share_begin(block, p.n, p.blocks);
  const GateRows all{begin, share_begin(block + 1, p.n, p.blocks) - begin};
  int32_t found = 0;  // of warp 0
  dot_rows<kType>(p, p.gate, p.up_x_at, all, [&](int32_t row, const float (&sum)[4]) {
    const bool exists = row < all.count && lane % 2 == 0;
    const float bound = exists ? dev::load_volatile(p.threshold + begin + row) : 0.0f;
    const float a = mlp_activate(p.activation, sum[0]);
    const bool counts = exists && !((a < 0 ? -a : a) < bound);  // a NaN counts
    const uint32_t bits = dev::ballot(counts);
    if (counts) {
      const int32_t to = found + dev::popcount(bits & ((uint32_t{1} << lane) - 1));
      dev::store_shared<dev::Word2>(PassRows::at(to),
                                    {static_cast<uint32_t>(begin + row), dev::bits_of(a)});
    }
    found += dev::popcount(bits);
  });
  if (thread == 0) dev::store_shared<int32_t>(kDotListAt, found);
  dev::sync_block();
  const PassRows rows{dev::load_shared<int32_t>(kDotListAt)};
  dot_rows<kType>(p, p.up, p.up_x_at, rows, [&](int32_t row, const float (&sum)[4]) {
    if (row >= rows.count || lane % 2 != 0) return;
    const float a = rows.factor(row);
    dev::store_shared<float>(PassRows::at(row) + 4, a == 0 ? 0.0f : a * sum[0]);
  });
  dev::sync_block();
  float sums[kParts][8] = {};
  PassStep<kParts> first, second;
  constexpr int32_t kRows = PassStep<kParts>::kRows;
  request_down(p, rows, 0, first);
  request_down(p, rows, kRows, second);
  for (int32_t row = 0; row < rows.count; row += 2 * kRows) {
    add_down<kType, kParts>(rows, row, first, sums);
    request_down(p, rows, row + 2 * kRows, first);
    add_down<kType, kParts>(rows, row + kRows, second, sums);
    request_down(p, rows, row + 3 * kRows, second);
  }
#pragma unroll
  for (uint32_t part = 0; part < kParts; ++part) {
    const uint32_t column = 8 * thread + kPassColumns * part;
    if (column >= static_cast<uint32_t>(p.d)) continue;
    auto* to = reinterpret_cast<dev::Word4*>(p.partial + int64_t{block} * p.d + column);
    const float* s = sums[part];
    to[0] = {dev::bits_of(s[0]), dev::bits_of(s[1]), dev::bits_of(s[2]), dev::bits_of(s[3])};
    to[1] = {dev::bits_of(s[4]), dev::bits_of(s[5]), dev::bits_of(s[6]), dev::bits_of(s[7])};
  }
}

// y = the blocks' sums added up. Grid [ceil(d / 32)] of kDotThreads: a warp has every eighth four
// blocks, eight lanes a block's 32 columns.
template <DType kType>
TAMIS_DEVICE void mlp_pass_sum(const MlpParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const uint32_t column = 32 * dev::block_index_x() + 4 * (lane % 8);
  const auto d = static_cast<uint32_t>(p.d), blocks = static_cast<uint32_t>(p.blocks);
  float sum[4] = {};
#pragma unroll 12
  for (uint32_t b = thread / 8; b < blocks; b += kDotThreads / 8) {
    if (column < d) {
      const auto part = dev::load_volatile(
          reinterpret_cast<const dev::Word4*>(p.partial + int64_t{b} * d + column));
      sum[0] += dev::float_of(part.x);
      sum[1] += dev::float_of(part.y);
      sum[2] += dev::float_of(part.z);
      sum[3] += dev::float_of(part.w);
    }
  }
#pragma unroll
  for (float& s : sum) {
    s += dev::shuffle_xor(s, 8);
    s += dev::shuffle_xor(s, 16);
  }
  if (lane < 8) {
    dev::store_shared<dev::Word4>(
        128 * warp + 16 * lane,
        {dev::bits_of(sum[0]), dev::bits_of(sum[1]), dev::bits_of(sum[2]), dev::bits_of(sum[3])});
  }
  dev::sync_block();
  const uint32_t mine = 32 * dev::block_index_x() + thread;
  if (thread >= 32 || mine >= d) return;
  float y = 0;
#pragma unroll
  for (uint32_t w = 0; w < kDotWarps; ++w) y += dev::load_shared<float>(128 * w + 4 * thread);
  p.y[mine] = narrow<kType>(y);
}

}  // namespace tamis
