// sparse_input: each block lists the inputs that count among its own, in order, in shared memory,
// then adds up their rows (row_sum.cuh). Blocks of a tile of columns share the inputs by groups of
// 32 in turns.
#pragma once

#include "ops/sparse_input/row_sum.cuh"
#include "ops/sparse_input/sparse_input_params.h"

namespace tamis {

// The list of a block: ids and factors, which are elements of x and exact.
struct SharedList {
  static constexpr int kWords = 1;
  static constexpr bool kAhead = false;
  uint32_t ids_at, factors_at, m;
  int32_t count;

  TAMIS_DEVICE RowIds rows(int32_t step, int32_t, uint32_t lane) const {
    RowIds out;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t at =
          kRowSumStep * step + 2 * static_cast<int32_t>(lane % 4) + i % 2 + i / 2 * 8;
      out.id[i] = -1;
      if (at < count) out.id[i] = dev::load_shared<int32_t>(ids_at + 4 * static_cast<uint32_t>(at));
    }
    return out;
  }
  TAMIS_DEVICE void factors(int32_t step, uint32_t lane, uint32_t (&out)[1][2]) const {
    const uint32_t token = lane / 4 < m ? lane / 4 : m - 1;
    const uint32_t pair = kRowSumStep / 2 * static_cast<uint32_t>(step) + lane % 4;
    out[0][0] = dev::load_shared<uint32_t>(factors_at + 4 * (pair * m + token));
    out[0][1] = dev::load_shared<uint32_t>(factors_at + 4 * ((pair + 4) * m + token));
  }
};

// An input of all tokens: their elements, and the bits of those that count.
struct InputColumn {
  uint16_t x[kCudaTokens];
  uint32_t counting = 0;
};

template <DType kType>
TAMIS_DEVICE InputColumn load_column(const SparseInputParams& p, int32_t input) {
  InputColumn c;
  const bool exists = input < p.k;
  const float bound = exists ? dev::load_volatile(p.threshold + input) : 0.0f;
#pragma unroll
  for (int32_t t = 0; t < kCudaTokens; ++t) {  // all on their way at once
    const bool there = exists && t < p.sum.m;
    c.x[t] = there ? dev::load_volatile(p.x + t * p.x_stride + input) : uint16_t{0};
    const float x = widen<kType>(c.x[t]);
    c.counting |= there && !((x < 0 ? -x : x) < bound) ? 1u << t : 0u;  // a NaN counts
  }
  return c;
}

// Makes the list of this block and returns its length.
template <DType kType>
TAMIS_DEVICE int32_t list_inputs(const SparseInputParams& p) {
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const uint32_t words = kInputWordsAt, starts = p.starts_at;
  const uint32_t ids = p.ids_at, factors = p.factors_at;
  const int32_t groups = p.groups;
  const auto m = static_cast<uint32_t>(p.sum.m);
  const auto input_of = [&](int32_t group) {
    return 32 * (group * p.sum.splits + static_cast<int32_t>(dev::block_index_y())) +
           static_cast<int32_t>(lane);
  };
#pragma unroll 4
  for (auto g = static_cast<int32_t>(warp); g < groups; g += kRowSumWarps) {
    const uint32_t word = dev::ballot(load_column<kType>(p, input_of(g)).counting != 0);
    if (lane == 0) dev::store_shared<uint32_t>(words + 4 * static_cast<uint32_t>(g), word);
  }
  dev::sync_block();
  if (warp == 0) {
    uint32_t before = 0;
    for (int32_t first = 0; first < groups; first += 32) {
      const auto at = static_cast<uint32_t>(first) + lane;
      uint32_t count = 0;
      if (at < static_cast<uint32_t>(groups)) {
        count = static_cast<uint32_t>(dev::popcount(dev::load_shared<uint32_t>(words + 4 * at)));
      }
      uint32_t sum = count;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) sum = dev::prefix_step(sum, distance);
      if (at < static_cast<uint32_t>(groups)) {
        dev::store_shared<uint32_t>(starts + 4 * at, before + sum - count);
      }
      before += static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(sum), 31));
    }
    if (lane == 0) dev::store_shared<uint32_t>(kInputCountAt, before);
  }
  dev::sync_block();
#pragma unroll 4
  for (auto g = static_cast<int32_t>(warp); g < groups; g += kRowSumWarps) {
    const int32_t input = input_of(g);
    const InputColumn c = load_column<kType>(p, input);
    const auto word = dev::load_shared<uint32_t>(words + 4 * static_cast<uint32_t>(g));
    const auto start = dev::load_shared<uint32_t>(starts + 4 * static_cast<uint32_t>(g));
    const uint32_t at =
        start + static_cast<uint32_t>(dev::popcount(word & ((uint32_t{1} << lane) - 1)));
    if ((word >> lane & 1) == 0) continue;
    dev::store_shared<int32_t>(ids + 4 * at, input);
#pragma unroll
    for (uint32_t t = 0; t < kCudaTokens; ++t) {
      if (t < m) {
        dev::store_shared<uint16_t>(factors + 4 * (at / 2 * m + t) + 2 * (at % 2),
                                    (c.counting >> t & 1) != 0 ? c.x[t] : uint16_t{0});
      }
    }
  }
  const auto count = dev::load_shared<uint32_t>(kInputCountAt);
  const uint32_t padded = (count + kRowSumStep - 1) / kRowSumStep * kRowSumStep;
  if (thread < padded - count) {
    const uint32_t at = count + thread;
    for (uint32_t t = 0; t < m; ++t) {
      dev::store_shared<uint16_t>(factors + 4 * (at / 2 * m + t) + 2 * (at % 2), uint16_t{0});
    }
  }
  dev::sync_block();
  return static_cast<int32_t>(count);
}

// Grid [tiles of columns, splits] of kRowSumThreads.
template <DType kType>
TAMIS_DEVICE void sparse_input(const SparseInputParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const int32_t count = list_inputs<kType>(p);
  const SharedList list{p.ids_at, p.factors_at, static_cast<uint32_t>(p.sum.m), count};
  RowSums sums;
  sum_rows<kType>(p.sum, list, 0, (count + kRowSumStep - 1) / kRowSumStep, sums);
  finish_row_sums<kType>(p.sum, sums);
}

}  // namespace tamis
