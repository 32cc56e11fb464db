// y[t,c] = sum_i factor[i,t] * w[id(i),c] over the rows of a list, on tensor cores with f32 sums.
// Tile: a block has 128 columns; a warp takes 16 rows of the list at a time, 4 loads of 16 bytes a
// lane and 64 columns. Rows come as stored; byte permutes pair their elements over rows, which
// makes transposed 16 x 16 operands of them, and up to 8 tokens are the other operand: one to eight
// tokens cost the same. Two steps are on their way while one is multiplied. Reduction: warps, then
// blocks in the workspace, added by the block that arrives last, always in one order. Needs:
// columns a multiple of 8, w on a multiple of 16 bytes; tickets zero.   Tail: rows past the list
// and columns past the last are not read and count as zero; their factors are zero.
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "base/cuda/ticket.h"
#include "base/dtype.h"
#include "ops/sparse_input/row_sum_params.h"

namespace tamis {

inline constexpr int kRowSumParts = kRowSumColumns / 64;

// Sums of columns 64 part + 8 g + 2 n + i in lane 4 g + t: c[part][n][2 i + j] of token 2 t + j.
struct RowSums {
  float c[kRowSumParts][4][4] = {};
};

// Four rows of the list, 2t, 2t + 1, 2t + 8 and 2t + 9 of a step; -1: none.
struct RowIds {
  int32_t id[4];
};

// What a step multiplies. kWords: pairs of factors for each of the two halves of a step, one if
// they are exact in 16 bits, two if a second product adds what the first one's rounding left.
template <int kWords>
struct RowStep {
  dev::Word4 w[kRowSumParts][4];
  uint32_t factor[kWords][2];
};

template <class List>
TAMIS_DEVICE void request_rows(const RowSumParams& p, const List& list, int32_t step, int32_t end,
                               const RowIds& rows, uint32_t lane, RowStep<List::kWords>& s) {
  const uint32_t column = dev::block_index_x() * kRowSumColumns + 8 * (lane / 4);
  const auto columns = static_cast<uint32_t>(p.columns);
  const uint8_t* base = p.w + 2 * int64_t{column};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint8_t* row = base + int64_t{rows.id[i]} * (2 * p.columns);
#pragma unroll
    for (int part = 0; part < kRowSumParts; ++part) {
      s.w[part][i] = {0, 0, 0, 0};
      if (rows.id[i] >= 0 && column + 64 * part < columns) {
        s.w[part][i] = dev::load_stream(reinterpret_cast<const dev::Word4*>(row + 128 * part));
      }
    }
  }
  if (step < end) list.factors(step, lane, s.factor);
}

template <DType kType, int kWords>
TAMIS_DEVICE void add_rows(const RowStep<kWords>& s, RowSums& sums) {
#pragma unroll
  for (int part = 0; part < kRowSumParts; ++part) {
    const uint32_t word[4][4] = {{s.w[part][0].x, s.w[part][0].y, s.w[part][0].z, s.w[part][0].w},
                                 {s.w[part][1].x, s.w[part][1].y, s.w[part][1].z, s.w[part][1].w},
                                 {s.w[part][2].x, s.w[part][2].y, s.w[part][2].z, s.w[part][2].w},
                                 {s.w[part][3].x, s.w[part][3].y, s.w[part][3].z, s.w[part][3].w}};
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const uint32_t a[4] = {dev::byte_permute(word[0][n], word[1][n], 0x5410),
                             dev::byte_permute(word[0][n], word[1][n], 0x7632),
                             dev::byte_permute(word[2][n], word[3][n], 0x5410),
                             dev::byte_permute(word[2][n], word[3][n], 0x7632)};
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        multiply<kType>(sums.c[part][n], a, s.factor[i][0], s.factor[i][1]);
      }
    }
  }
}

// Steps [begin, end) of the list, by the warps of the block in turns.
template <DType kType, class List>
TAMIS_DEVICE void sum_rows(const RowSumParams& p, const List& list, int32_t begin, int32_t end,
                           RowSums& sums) {
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  int32_t step = begin + static_cast<int32_t>(warp);
  RowStep<List::kWords> first, second;
  RowIds rows = {};  // of the step after those that were requested, if ids come from memory
  if constexpr (List::kAhead) rows = list.rows(step, end, lane);
  const auto request = [&](int32_t which, RowStep<List::kWords>& to) {
    if constexpr (!List::kAhead) rows = list.rows(which, end, lane);
    request_rows(p, list, which, end, rows, lane, to);
    if constexpr (List::kAhead) rows = list.rows(which + kRowSumWarps, end, lane);
  };
  request(step, first);
  request(step + kRowSumWarps, second);
  while (step < end) {
    add_rows<kType>(first, sums);
    step += kRowSumWarps;
    request(step + kRowSumWarps, first);
    if (step >= end) break;
    add_rows<kType>(second, sums);
    step += kRowSumWarps;
    request(step + kRowSumWarps, second);
  }
}

// Adds up the warps, then the blocks of this tile of columns, and writes y. Shared memory: all of
// it, from 0.
template <DType kType>
TAMIS_DEVICE void finish_row_sums(const RowSumParams& p, const RowSums& sums) {
  constexpr uint32_t kFlagAt = 0, kSumsAt = 16;
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const auto m = static_cast<uint32_t>(p.m);
  dev::sync_block();  // nobody reads the list any more
#pragma unroll
  for (int part = 0; part < kRowSumParts; ++part) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (uint32_t j = 0; j < 2; ++j) {
        const uint32_t token = 2 * (lane % 4) + j;
        const uint32_t column = 64 * part + 8 * (lane / 4) + 2 * n;
        if (token < m) {
          dev::store_shared<dev::Word2>(
              kSumsAt + 4 * ((warp * m + token) * kRowSumPitch + column),
              {dev::bits_of(sums.c[part][n][j]), dev::bits_of(sums.c[part][n][2 + j])});
        }
      }
    }
  }
  dev::sync_block();
  const uint32_t tile = dev::block_index_x();
  const auto splits = static_cast<uint32_t>(p.splits);
  float* parts = p.partial + int64_t{tile} * splits * m * kRowSumColumns;
  const auto write = [&](uint32_t i, float sum) {
    const uint32_t column = tile * kRowSumColumns + i % kRowSumColumns;
    if (column >= static_cast<uint32_t>(p.columns)) return;
    if (p.bias != nullptr) sum += widen<kType>(dev::load_volatile(p.bias + column));
    p.y[int64_t{i / kRowSumColumns} * p.y_stride + column] = narrow<kType>(sum);
  };
  for (uint32_t i = thread; i < m * kRowSumColumns; i += kRowSumThreads) {
    float sum = 0;
#pragma unroll
    for (uint32_t w = 0; w < kRowSumWarps; ++w) {
      sum += dev::load_shared<float>(
          kSumsAt + 4 * ((w * m + i / kRowSumColumns) * kRowSumPitch + i % kRowSumColumns));
    }
    if (splits == 1) {
      write(i, sum);
    } else {
      dev::store_volatile(parts + dev::block_index_y() * m * kRowSumColumns + i, sum);
    }
  }
  if (splits == 1) return;
  if (!arrives_last(p.tickets + tile, splits, kFlagAt)) return;
  for (uint32_t i = thread; i < m * kRowSumColumns; i += kRowSumThreads) {
    float sum = 0;
#pragma unroll 8
    for (uint32_t s = 0; s < splits; ++s) {
      sum += dev::load_volatile(parts + s * m * kRowSumColumns + i);
    }
    write(i, sum);
  }
}

}  // namespace tamis
