// spmm_t and sddmm on tensor cores with f32 sums: 128 x 128 outputs a block, eight warps of 64
// x 32. sddmm multiplies dense tiles of dy^T and x and stores only what the mask keeps: at the
// densities of weights, tensor cores are faster on all products than others on those that count.
// spmm_t expands 32 x 128 of w into shared memory a stage, while the stage before it is multiplied.
// Shared memory: chunk c of 16 bytes of row r lies at c ^ (r & 7) (of 64-byte rows, c ^ (r / 2 &
// 3)), so eight rows meet in no bank. Needs: n and k multiples of 8, operands on 16 bytes; places
// filled.   Tail: rows, tokens and columns past the last count as zero and are not read. After:
// Gale et al. 2020 (SDDMM); Xia et al. 2023 (load as sparse, compute as dense).
#pragma once

#include "base/cuda/dev.h"
#include "base/dtype.h"
#include "ops/sparse_input/row_sum.cuh"
#include "ops/spmm_grad/grad_params.h"

namespace tamis {

// Where the values of each word begin: a warp a row. Grid [rows / 8] of kGradThreads.
TAMIS_DEVICE void grad_places(const GradMask& w) {
  const uint32_t lane = dev::thread_index() % 32;
  const auto row =
      static_cast<int32_t>(dev::block_index_x() * (kGradThreads / 32) + dev::thread_index() / 32);
  if (row >= w.rows) return;  // the whole warp
  const auto* mask = reinterpret_cast<const dev::Word2*>(w.mask) + int64_t{row} * w.words;
  uint32_t* places = w.places + int64_t{row} * w.words;
  auto before = static_cast<uint32_t>(
      w.row_offsets != nullptr ? dev::load_global(w.row_offsets + row) : row * w.row_values);
  for (int32_t first = 0; first < w.words; first += 32) {
    const int32_t word = first + static_cast<int32_t>(lane);
    uint32_t count = 0;
    if (word < w.words) {
      const dev::Word2 bits = dev::load_global(mask + word);
      count = static_cast<uint32_t>(dev::popcount(bits.x) + dev::popcount(bits.y));
    }
    uint32_t sum = count;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) sum = dev::prefix_step(sum, distance);
    if (word < w.words) places[word] = before + sum - count;
    before += static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(sum), 31));
  }
}

// A warp's share of the tile: 64 rows and 32 columns.
struct GradWarp {
  uint32_t lane, row, column;  // of the tile
  TAMIS_DEVICE GradWarp()
      : lane(dev::thread_index() % 32),
        row(dev::thread_index() / 32 / 4 * 64),
        column(dev::thread_index() / 32 % 4 * 32) {}
};

// Place of a chunk of 16 bytes in rows of 128 and of 32 elements.
TAMIS_DEVICE uint32_t wide_place(uint32_t row, uint32_t chunk) {
  return 256 * row + 16 * (chunk ^ (row & 7));
}
TAMIS_DEVICE uint32_t narrow_place(uint32_t row, uint32_t chunk) {
  return 64 * row + 16 * (chunk ^ (row / 2 & 3));
}

// c[m][n] += the products of 16 of a stage's 32: kTurned: the first operand is [summed, rows], as
// the second always is [summed, columns]; else [rows, summed].
template <DType kType, bool kTurned>
TAMIS_DEVICE void grad_multiply(uint32_t a_at, uint32_t b_at, uint32_t step, const GradWarp& w,
                                float (&c)[4][4][4]) {
  const uint32_t r = w.lane % 8, j = w.lane / 8;
  dev::Word4 b[2];
#pragma unroll
  for (uint32_t pair = 0; pair < 2; ++pair) {
    b[pair] = dev::load_matrices_transposed(
        b_at + wide_place(16 * step + j % 2 * 8 + r, w.column / 8 + 2 * pair + j / 2));
  }
#pragma unroll
  for (uint32_t m = 0; m < 4; ++m) {
    dev::Word4 a;
    if constexpr (kTurned) {
      a = dev::load_matrices_transposed(
          a_at + wide_place(16 * step + j / 2 * 8 + r, w.row / 8 + 2 * m + j % 2));
    } else {
      a = dev::load_matrices(a_at + narrow_place(w.row + 16 * m + j % 2 * 8 + r, 2 * step + j / 2));
    }
    const uint32_t words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (uint32_t pair = 0; pair < 2; ++pair) {
      multiply_pairs<kType>(c[m][2 * pair], words, b[pair].x, b[pair].y);
      multiply_pairs<kType>(c[m][2 * pair + 1], words, b[pair].z, b[pair].w);
    }
  }
}

// Asks for 32 tokens of 128 columns from `first` on of a [m, width] operand.
TAMIS_DEVICE void request_tokens(const uint16_t* from, int64_t stride, int32_t token, int32_t m,
                                 int32_t first, int32_t width, uint32_t to) {
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i) {
    const uint32_t at = dev::thread_index() + kGradThreads * i, row = at / 16, chunk = at % 16;
    const int32_t t = token + static_cast<int32_t>(row);
    const int32_t column = first + 8 * static_cast<int32_t>(chunk);
    const bool there = t < m && column < width;
    dev::copy_async16(to + wide_place(row, chunk), there ? from + t * stride + column : from,
                      there ? 16 : 0);
  }
}

// Grid [columns / 128, rows / 128] of kGradThreads.
template <DType kType>
TAMIS_DEVICE void sddmm(const SddmmParams& p) {
  const GradWarp w;
  const auto column = static_cast<int32_t>(dev::block_index_x()) * kGradTile;
  const auto row = static_cast<int32_t>(dev::block_index_y()) * kGradTile;
  const int32_t steps = (p.m + kGradStep - 1) / kGradStep;
  const auto stage = [](int32_t step) {
    return static_cast<uint32_t>(step % kSddmmStages) * 2 * kGradStageBytes;
  };
  const auto request = [&](int32_t step) {
    if (step < steps) {
      request_tokens(p.dy, p.dy_stride, kGradStep * step, p.m, row, p.w.rows, stage(step));
      request_tokens(p.x, p.x_stride, kGradStep * step, p.m, column, p.k,
                     stage(step) + kGradStageBytes);
    }
    dev::commit_async();
  };
  float c[4][4][4] = {};
  for (int32_t step = 0; step < kSddmmStages - 1; ++step) request(step);
#pragma unroll 1
  for (int32_t step = 0; step < steps; ++step) {
    dev::wait_async<kSddmmStages - 2>();
    dev::sync_block();
    request(step + kSddmmStages - 1);
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      grad_multiply<kType, true>(stage(step), stage(step) + kGradStageBytes, half, w, c);
    }
  }

  // What the mask keeps: a warp's 32 columns are half of a word.
  const int32_t word = column / 64 + static_cast<int32_t>(w.column / 64);
  if (word >= p.w.words) return;
  const bool high = w.column / 32 % 2 != 0;
#pragma unroll
  for (uint32_t m = 0; m < 4; ++m) {
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const int32_t r = row + static_cast<int32_t>(w.row + 16 * m + 8 * half + w.lane / 4);
      if (r >= p.w.rows) continue;
      const int64_t at = int64_t{r} * p.w.words + word;
      const dev::Word2 mask = dev::load_global(reinterpret_cast<const dev::Word2*>(p.w.mask) + at);
      const uint32_t bits = high ? mask.y : mask.x;
      uint16_t* dw = p.dw + dev::load_volatile(p.w.places + at) +
                     (high ? static_cast<uint32_t>(dev::popcount(mask.x)) : 0u);
#pragma unroll
      for (uint32_t n = 0; n < 4; ++n) {
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
          const uint32_t bit = uint32_t{1} << (8 * n + 2 * (w.lane % 4) + i);
          if ((bits & bit) != 0) {
            dw[dev::popcount(bits & (bit - 1))] = narrow_half<kType>(c[m][n][2 * half + i]);
          }
        }
      }
    }
  }
}

// 16 columns of a row of w that a thread takes: which are kept, and where their values begin.
struct GradPiece {
  uint32_t bits = 0, at = 0;
};

TAMIS_DEVICE GradPiece find_piece(const GradMask& w, int32_t row, int32_t word, uint32_t quarter) {
  if (row >= w.rows || word >= w.words) return {};
  const int64_t i = int64_t{row} * w.words + word;
  const dev::Word2 mask = dev::load_global(reinterpret_cast<const dev::Word2*>(w.mask) + i);
  const uint32_t half = quarter < 2 ? mask.x : mask.y;
  const bool odd = quarter % 2 != 0;
  uint32_t before = quarter < 2 ? 0u : static_cast<uint32_t>(dev::popcount(mask.x));
  before += odd ? static_cast<uint32_t>(dev::popcount(half & 0xffffu)) : 0u;
  return {odd ? half >> 16 : half & 0xffffu, dev::load_volatile(w.places + i) + before};
}

// The piece's values in their columns, zero between them.
TAMIS_DEVICE void expand_piece(const uint16_t* values, const GradPiece& piece,
                               uint16_t (&kept)[16]) {
  uint32_t at = piece.at;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const uint32_t bit = piece.bits >> i & 1;
    kept[i] = bit != 0 ? dev::load_global(values + at) : uint16_t{0};
    at += bit;
  }
}

// Columns 8 half .. 8 half + 7 as one word.
TAMIS_DEVICE dev::Word4 half_piece(const uint16_t (&kept)[16], uint32_t half) {
  uint32_t pairs[4];
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    pairs[i] = kept[8 * half + 2 * i] | uint32_t{kept[8 * half + 2 * i + 1]} << 16;
  }
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

// Grid [columns / 128, tokens / 128 * splits] of kGradThreads.
template <DType kType>
TAMIS_DEVICE void spmm_t(const SpmmTParams& p) {
  const GradWarp w;
  const uint32_t thread = dev::thread_index();
  const auto column = static_cast<int32_t>(dev::block_index_x()) * kGradTile;
  const auto y = static_cast<int32_t>(dev::block_index_y());
  const int32_t split = y % p.splits, token = y / p.splits * kGradTile;
  const int32_t all = (p.w.rows + kGradStep - 1) / kGradStep;
  const auto begin = static_cast<int32_t>(int64_t{all} * split / p.splits);
  const auto end = static_cast<int32_t>(int64_t{all} * (split + 1) / p.splits);
  const auto stage = [&](int32_t step) {
    return static_cast<uint32_t>((step - begin) % kSpmmTStages) * kGradStageBytes;
  };
  const auto weights = [&](int32_t step) {
    return static_cast<uint32_t>(kSpmmTStages + (step - begin) % 2) * kGradStageBytes;
  };
  const auto request = [&](int32_t step) {  // dy: 128 tokens of 32 rows of w
    if (step < end) {
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t at = thread + kGradThreads * i, row = at / 4, chunk = at % 4;
        const int32_t t = token + static_cast<int32_t>(row);
        const int32_t r = kGradStep * step + 8 * static_cast<int32_t>(chunk);
        const bool there = t < p.m && r < p.w.rows;
        dev::copy_async16(stage(step) + narrow_place(row, chunk),
                          there ? p.dy + t * p.dy_stride + r : p.dy, there ? 16 : 0);
      }
    }
    dev::commit_async();
  };
  const uint32_t piece_row = thread / 8, part = thread % 8;
  const auto find = [&](int32_t step) {
    if (step >= end) return GradPiece{};
    return find_piece(p.w, kGradStep * step + static_cast<int32_t>(piece_row),
                      column / 64 + static_cast<int32_t>(part / 4), part % 4);
  };
  uint16_t kept[16];
  const auto fetch = [&](const GradPiece& piece) { expand_piece(p.values, piece, kept); };
  const auto store = [&](int32_t step) {
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      dev::store_shared<dev::Word4>(weights(step) + wide_place(piece_row, 2 * part + half),
                                    half_piece(kept, half));
    }
  };

  float c[4][4][4] = {};
  for (int32_t step = begin; step < begin + kSpmmTStages - 1; ++step) request(step);
  fetch(find(begin));
  store(begin);
  GradPiece next = find(begin + 1);
#pragma unroll 1
  for (int32_t step = begin; step < end; ++step) {
    dev::wait_async<kSpmmTStages - 2>();
    dev::sync_block();
    request(step + kSpmmTStages - 1);
    fetch(next);
    next = find(step + 2);
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      grad_multiply<kType, false>(stage(step), weights(step), half, w, c);
    }
    store(step + 1);
  }

#pragma unroll
  for (uint32_t m = 0; m < 4; ++m) {
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const int32_t t = token + static_cast<int32_t>(w.row + 16 * m + 8 * half + w.lane / 4);
#pragma unroll
      for (uint32_t n = 0; n < 4; ++n) {
        const int32_t k = column + static_cast<int32_t>(w.column + 8 * n + 2 * (w.lane % 4));
        if (t >= p.m || k >= p.k) continue;
        const float low = c[m][n][2 * half], high = c[m][n][2 * half + 1];
        if (p.splits == 1) {
          *reinterpret_cast<uint32_t*>(p.dx + t * p.dx_stride + k) =
              narrow_half<kType>(low) | uint32_t{narrow_half<kType>(high)} << 16;
        } else {
          *reinterpret_cast<dev::Word2*>(p.partial + (int64_t{split} * p.m + t) * p.k + k) = {
              dev::bits_of(low), dev::bits_of(high)};
        }
      }
    }
  }
}

// dx from its partial sums, always in one order. Grid [k / 512, m] of kGradThreads.
template <DType kType>
TAMIS_DEVICE void spmm_t_add(const SpmmTParams& p) {
  const auto k =
      static_cast<int32_t>(2 * (dev::block_index_x() * kGradThreads + dev::thread_index()));
  const auto t = static_cast<int32_t>(dev::block_index_y());
  if (k >= p.k) return;
  float low = 0, high = 0;
  for (int32_t split = 0; split < p.splits; ++split) {
    const dev::Word2 part = dev::load_volatile(
        reinterpret_cast<const dev::Word2*>(p.partial + (int64_t{split} * p.m + t) * p.k + k));
    low += dev::float_of(part.x);
    high += dev::float_of(part.y);
  }
  *reinterpret_cast<uint32_t*>(p.dx + t * p.dx_stride + k) =
      narrow_half<kType>(low) | uint32_t{narrow_half<kType>(high)} << 16;
}

}  // namespace tamis
