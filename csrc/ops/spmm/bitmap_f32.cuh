// y[m,n] = sum_k x[m,k] * w[n,k] + bias[n] for 1 to 16 tokens.  w: bitmap or nm as stored, f32; x,
// bias, y: f32; accumulates f32 on CUDA cores, a chain for each row, token and lane.
// Tile: a block has some rows at a time, whose words of the mask (64 columns) its warps share out;
// a lane has two columns of a word. Values of kDepth words are on their way to registers, of the
// next rows where these end, and the masks of the rows after those, so loads never run dry. Values
// come through the L1 cache, as neighbouring words share sectors, and so does x, which the warps of
// an SM read at about the same time: no shared memory bounds k or m. Reduction: lanes by halves,
// warps in shared memory, always from the first part of k to the last, so results repeat bit for
// bit. Launched so that it may begin before the kernel before it ends, it needs weights which that
// kernel did not write. Tail: columns past the last have no bits, and zeros for x. A pruned weight
// times Inf or NaN is NaN here.
#pragma once

#include "base/cuda/dev.h"
#include "ops/spmm/bitmap_f32_params.h"

namespace tamis {

template <int kTokensOf, bool kPairsOf>
struct BitmapF32Config {
  static constexpr int kTokens = kTokensOf;
  static constexpr bool kPairs = kPairsOf;            // columns of x are loaded by two
  static constexpr int kRows = kTokens <= 8 ? 4 : 8;  // of a block at a time
  // Words on their way, as many as registers hold: sm_80 and sm_89 spill where sm_90 does not.
  static constexpr int kMost = kTokens <= 4 ? 4 : kTokens <= 8 || dev::kBulkCopies ? 2 : 1;
  static constexpr int kDepth = kPairs ? kMost : (kMost + 1) / 2;
  static constexpr int kBlocks = kTokens <= 8 ? 2 : 1;  // of an SM, of kBitmapF32Warps
  static constexpr int kSums = kTokens * kRows;
};

// Rows that a block has at a time, and the parts of them, as steps.
template <int kRows>
struct BitmapF32Steps {
  int32_t first_word;  // of a row, of this warp in the first part
  int32_t count;

  TAMIS_DEVICE explicit BitmapF32Steps(const BitmapF32Params& p) {
    const auto block = static_cast<int32_t>(dev::block_index_x());
    const int32_t groups = (p.rows + kRows - 1) / kRows;
    first_word = static_cast<int32_t>(dev::thread_index() / 32) * p.warp_words;
    count = block < groups ? ((groups - block - 1) / p.blocks + 1) * p.parts : 0;
  }
  TAMIS_DEVICE int32_t row(const BitmapF32Params& p, int32_t step) const {
    const auto block = static_cast<int32_t>(dev::block_index_x());
    return kRows * (block + step / p.parts * p.blocks);
  }
  TAMIS_DEVICE int32_t word(const BitmapF32Params& p, int32_t step) const {
    return first_word + step % p.parts * p.warps * p.warp_words;
  }
};

// A step's words of the mask, one a lane, on their way, and where the values of its rows begin.
template <int kRows>
struct BitmapF32Bits {
  dev::Word2 bits[kRows];
  uint32_t start[kRows] = {};  // of a row's first part; of others, where the part before ended

  TAMIS_DEVICE void request(const BitmapF32Params& p, const BitmapF32Steps<kRows>& steps,
                            int32_t step) {
    const auto lane = static_cast<int32_t>(dev::thread_index() % 32);
    const int32_t row = steps.row(p, step), word = steps.word(p, step) + lane;
    const bool inside = step < steps.count && lane < p.warp_words && word < p.words;
    const bool begins = step < steps.count && step % p.parts == 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const auto* mask = reinterpret_cast<const dev::Word2*>(p.mask) + int64_t{row + r} * p.words;
      bits[r] = inside && row + r < p.rows ? dev::load_global(mask + word) : dev::Word2{0, 0};
      if (!begins || row + r >= p.rows) continue;
      start[r] =
          static_cast<uint32_t>(p.row_offsets != nullptr ? dev::load_global(p.row_offsets + row + r)
                                                         : (row + r) * p.row_values);
    }
  }

  // Leaves the words in shared memory, each half beside the index of its first value. All warps of
  // the block come here.
  TAMIS_DEVICE void store(const BitmapF32Params& p, int32_t step, uint32_t words_at) {
    const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
    const uint32_t counts_at = step % 2 * kBitmapF32CountBytes;
    uint32_t before[kRows], low[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      low[r] = static_cast<uint32_t>(dev::popcount(bits[r].x));
      const uint32_t mine = low[r] + static_cast<uint32_t>(dev::popcount(bits[r].y));
      uint32_t sum = mine;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) sum = dev::prefix_step(sum, distance);
      before[r] = start[r] + sum - mine;
      if (lane == 31) dev::store_shared<uint32_t>(counts_at + 4 * (warp * kRows + r), sum);
    }
    dev::sync_block();
    for (uint32_t other = 0; other < static_cast<uint32_t>(p.warps); ++other) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const auto had = dev::load_shared<uint32_t>(counts_at + 4 * (other * kRows + r));
        start[r] += had;
        if (other < warp) before[r] += had;
      }
    }
    if (static_cast<int32_t>(lane) < p.warp_words) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        dev::store_shared<dev::Word4>(
            words_at + 16 * (r * static_cast<uint32_t>(p.warp_words) + lane),
            {bits[r].x, before[r], bits[r].y, before[r] + low[r]});
      }
    }
    dev::sync_warp();
  }
};

// This lane's two columns of a word of each row.
template <int kRows>
struct BitmapF32Values {
  float value[kRows][2];

  // The value of an odd column, if kept, follows those of all columns below; that of the even one
  // before it, if kept, is the one before that.
  TAMIS_DEVICE void request(const BitmapF32Params& p, uint32_t word_at) {
    const uint32_t lane = dev::thread_index() % 32;
    const uint32_t even = uint32_t{1} << 2 * lane % 32, odd = 2 * even;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const auto half = dev::load_shared<dev::Word2>(
          word_at + 16 * static_cast<uint32_t>(r * p.warp_words) + lane / 16 * 8);
      const auto below = static_cast<uint32_t>(dev::popcount(half.x & (odd - 1)));
      const float* from = p.values + (half.y + below);
      value[r][0] = (half.x & even) != 0 ? dev::load_global(from - 1) : 0.0f;
      value[r][1] = (half.x & odd) != 0 ? dev::load_global(from) : 0.0f;
    }
  }
};

// Where a step's words of this warp lie.
template <int kRows>
TAMIS_DEVICE uint32_t words_of_step(const BitmapF32Params& p, int32_t step) {
  const uint32_t buffer = static_cast<uint32_t>(step % 2 * p.warps) + dev::thread_index() / 32;
  return kBitmapF32WordsAt + buffer * static_cast<uint32_t>(16 * kRows * p.warp_words);
}

// Calls take(step, word of a row, values) for all words of this warp, first to last, while the next
// values are on their way, begin(step) before the words of a step and end(step) behind them.
template <int kDepth, int kRows, class Begin, class Take, class End>
TAMIS_DEVICE void for_bitmap_words(const BitmapF32Params& p, const BitmapF32Steps<kRows>& steps,
                                   const Begin& begin, const Take& take, const End& end) {
  static_assert(kBitmapF32Unit % kDepth == 0, "a warp's words are whole multiples");
  BitmapF32Bits<kRows> next;
  next.request(p, steps, 0);
  next.store(p, 0, words_of_step<kRows>(p, 0));
  next.request(p, steps, 1);
  BitmapF32Values<kRows> ring[kDepth];
#pragma unroll
  for (int slot = 0; slot < kDepth; ++slot)
    ring[slot].request(p, words_of_step<kRows>(p, 0) + 16 * slot);
  dev::wait_for_previous();
#pragma unroll 1
  for (int32_t step = 0; step < steps.count; ++step) {
    const uint32_t here = words_of_step<kRows>(p, step), there = words_of_step<kRows>(p, step + 1);
    next.store(p, step + 1, there);
    begin(step);
    next.request(p, steps, step + 2);
    const int32_t first = steps.word(p, step);
#pragma unroll 1
    for (int32_t i = 0; i < p.warp_words; i += kDepth) {
      const int32_t ahead = i + kDepth;
      const uint32_t from = ahead < p.warp_words ? here + 16 * static_cast<uint32_t>(ahead) : there;
#pragma unroll
      for (int slot = 0; slot < kDepth; ++slot) {
        take(step, first + i + slot, ring[slot].value);
        ring[slot].request(p, from + 16 * slot);
      }
    }
    end(step);
  }
}

// Two columns of a token of x, zeros beyond k. Loads that the L1 cache keeps.
template <bool kPairs>
TAMIS_DEVICE void load_x_pair(const BitmapF32Params& p, int32_t token, int32_t column,
                              float (&x)[2]) {
  const float* from = p.x + (token < p.m ? token : p.m - 1) * p.x_stride + column;
  if constexpr (kPairs) {
    dev::Word2 pair{0, 0};
    if (column < p.cols) pair = *reinterpret_cast<const dev::Word2*>(from);
    x[0] = dev::float_of(pair.x), x[1] = dev::float_of(pair.y);
  } else {
    x[0] = column < p.cols ? from[0] : 0.0f;
    x[1] = column + 1 < p.cols ? from[1] : 0.0f;
  }
}

// Adds up kCount of c over the lanes: half of them send the other half what those go on with. Lane
// l is left with those of c from l * kSums / 32 on, at the first places.
template <int kCount, int kDistance, int kSums>
TAMIS_DEVICE void add_up_lanes(float (&c)[kSums], uint32_t lane) {
  if constexpr (kCount == 1) {
    c[0] += dev::shuffle_xor(c[0], kDistance);
  } else {
    const bool upper = (lane & kDistance) != 0;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const float low = c[i], high = c[kCount / 2 + i];
      c[i] = (upper ? high : low) + dev::shuffle_xor(upper ? low : high, kDistance);
    }
  }
  if constexpr (kDistance > 1) add_up_lanes<kCount == 1 ? 1 : kCount / 2, kDistance / 2>(c, lane);
}

// Writes y of the rows of a step, whose warps' sums are all there.
template <int kRows, int kSums>
TAMIS_DEVICE void write_bitmap_sums(const BitmapF32Params& p, int32_t row, int32_t step) {
  const uint32_t thread = dev::thread_index();
  const auto r = static_cast<int32_t>(thread % kRows);
  const auto t = static_cast<int32_t>(thread / kRows);
  if (t >= p.m || row + r >= p.rows) return;
  const uint32_t sums_at = kBitmapF32SumsAt + step % 2 * kBitmapF32SumBytes + 4 * thread;
  float sum = 0;
  for (uint32_t warp = 0; warp < static_cast<uint32_t>(p.warps); ++warp) {
    sum += dev::load_shared<float>(sums_at + 4 * kSums * warp);
  }
  p.y[t * p.y_stride + row + r] = sum + (p.bias ? dev::load_global(p.bias + row + r) : 0.0f);
}

// Grid [blocks] of 32 * warps threads.
template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * kBitmapF32Warps, Config::kBlocks)
    spmm_bitmap_f32(const BitmapF32Params p) {
  constexpr int kRows = Config::kRows, kTokens = Config::kTokens, kSums = Config::kSums;
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const BitmapF32Steps<kRows> steps(p);
  float c[kSums] = {};  // [tokens, rows]
  const auto begin = [&](int32_t step) {
    // The last step's sums, if they are of whole rows, as all warps have come here.
    if (step > 0 && step % p.parts == 0) {
      write_bitmap_sums<kRows, kSums>(p, steps.row(p, step - 1), step - 1);
    }
  };
  const auto take = [&](int32_t, int32_t word, const float (&value)[kRows][2]) {
    const int32_t column = 64 * word + 2 * static_cast<int32_t>(lane);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      float x[2];
      load_x_pair<Config::kPairs>(p, t, column, x);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float& sum = c[t * kRows + r];
        sum = dev::fma(value[r][0], x[0], sum);
        sum = dev::fma(value[r][1], x[1], sum);
      }
    }
  };
  const auto end = [&](int32_t step) {
    if ((step + 1) % p.parts != 0) return;
    add_up_lanes<kSums, 16>(c, lane);
    constexpr int kEach = kSums >= 32 ? kSums / 32 : 1, kLanes = kSums >= 32 ? 1 : 32 / kSums;
    const uint32_t sums_at = kBitmapF32SumsAt + step % 2 * kBitmapF32SumBytes + 4 * kSums * warp;
    if (lane % kLanes == 0) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        dev::store_shared<float>(sums_at + 4 * (lane / kLanes * kEach + i), c[i]);
      }
    }
#pragma unroll
    for (float& sum : c) sum = 0;
  };
  for_bitmap_words<Config::kDepth>(p, steps, begin, take, end);
  dev::allow_next();
  dev::sync_block();
  if (steps.count > 0) {
    write_bitmap_sums<kRows, kSums>(p, steps.row(p, steps.count - 1), steps.count - 1);
  }
}

// The same weight densely, y [rows, cols]. The same grid.
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * kBitmapF32Warps, 2)
    expand_bitmap_f32(const BitmapF32Params p) {
  constexpr int kRows = BitmapF32Config<1, true>::kRows;
  const BitmapF32Steps<kRows> steps(p);
  const auto take = [&](int32_t step, int32_t word, const float (&value)[kRows][2]) {
    const int32_t column = 64 * word + 2 * static_cast<int32_t>(dev::thread_index() % 32);
    const int32_t row = steps.row(p, step);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (row + r >= p.rows) continue;
      float* to = p.y + int64_t{row + r} * p.y_stride + column;
      if (p.pairs) {
        const dev::Word2 pair{dev::bits_of(value[r][0]), dev::bits_of(value[r][1])};
        if (column < p.cols) *reinterpret_cast<dev::Word2*>(to) = pair;
      } else {
        if (column < p.cols) to[0] = value[r][0];
        if (column + 1 < p.cols) to[1] = value[r][1];
      }
    }
  };
  for_bitmap_words<4>(p, steps, [](int32_t) {}, take, [](int32_t) {});
}

}  // namespace tamis
