// y[m,n] = sum_k x[m,k] * w[n,k] + bias[n] for 1 to 4 tokens.  w: gap, bf16 or f16; x, bias, y: the
// same dtype; accumulates f32 on CUDA cores, two chains a row and token.
// Tile: a lane has a row, a warp a part of a slice of 32 rows, kDepth steps of which are on their
// way to its registers: 640 bytes each, read once and past the caches. An entry is a column, one
// dot product of bytes away from those before it, a load of x from shared memory, and a
// multiplication for each token. Reduction: warps of a block add up in shared memory; blocks that
// share a slice leave f32 partial sums in the workspace and the last one to arrive adds them,
// always from the first part to the last, so results repeat bit for bit. Needs: tickets zero before
// the first call; every call leaves them zero; columns of w below k. Launched so that it may begin
// before the kernel before it ends, it needs weights which that kernel did not write. Tail: entries
// that fill up a slice have value zero and repeat a column. A pruned weight times Inf or NaN can be
// NaN here. Bank conflicts: lanes go along their rows in step, so what they read of x lies close
// together: a load takes 2.3 wavefronts at half density and 4096 columns, 2.6 to 3.0 at 0.3 to 0.1
// (counted over random rows); a record of 640 bytes leaves 33 SM clocks at 4.46 TB/s (H200).
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "base/cuda/ticket.h"
#include "ops/spmm/gap_params.h"

namespace tamis {

template <DType kTypeOf, int kTokensOf, int kDepthOf = kTokensOf == 4 ? 3 : 4>
struct GapConfig {
  static constexpr DType kType = kTypeOf;    // of w, x, bias and y
  static constexpr int kTokens = kTokensOf;  // 1, 2 or 4
  static constexpr int kDepth = kDepthOf;    // steps of a warp in registers
  static constexpr int kColumnBytes = 2 * kTokens;
  static_assert(kTokens == 1 || kTokens == 2 || kTokens == 4, "a column of x is one load");
};

// Where a slice lies, in units, and its steps. (Both from a table in the kernel's parameters,
// without a load: no faster on an H200.)
struct GapSlice {
  uint32_t unit, steps;

  template <class Params>
  TAMIS_DEVICE GapSlice(const Params& p, uint32_t slice)
      : unit(dev::load_global(p.offsets + slice)) {
    constexpr uint32_t kStepUnits = gap::kStepBytes / gap::kUnit;
    steps = (dev::load_global(p.offsets + slice + 1) - unit - p.header_units) / kStepUnits;
  }
};

// A warp's steps on their way to registers.
template <int kDepth>
struct GapSteps {
  const uint8_t* values;
  const uint8_t* gaps;
  int32_t left;  // to be requested
  dev::Word4 value[kDepth];
  uint32_t gap[kDepth];

  TAMIS_DEVICE GapSteps(const uint8_t* first, int32_t count, uint32_t lane)
      : values(first + 16 * lane), gaps(first + gap::kValueBytes + 4 * lane), left(count) {
#pragma unroll
    for (int slot = 0; slot < kDepth; ++slot) request(slot);
  }

  TAMIS_DEVICE void request(int slot) {
    if (left <= 0) return;  // the same in every lane
    value[slot] = dev::load_stream(reinterpret_cast<const dev::Word4*>(values));
    gap[slot] = dev::load_stream(reinterpret_cast<const uint32_t*>(gaps));
    values += gap::kStepBytes;
    gaps += gap::kStepBytes;
    --left;
  }
};

// The pairs of x [columns col to col + 2 * kPairs) of one token, zeros beyond k.
template <int kPairs>
TAMIS_DEVICE void load_gap_pairs(const SpmmGapParams& p, int32_t token, int32_t col,
                                 uint32_t (&pairs)[kPairs]) {
  const uint16_t* from = p.x + (token < p.m ? token : p.m - 1) * p.x_stride + col;
  if (p.x_aligned && col + 2 * kPairs <= p.cols) {
    if constexpr (kPairs == 4) {
      const dev::Word4 v = dev::load_volatile(reinterpret_cast<const dev::Word4*>(from));
      pairs[0] = v.x, pairs[1] = v.y, pairs[2] = v.z, pairs[3] = v.w;
    } else {
      const dev::Word2 v = dev::load_volatile(reinterpret_cast<const dev::Word2*>(from));
      pairs[0] = v.x, pairs[1] = v.y;
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const uint32_t low = col + 2 * j < p.cols ? dev::load_volatile(from + 2 * j) : 0;
    const uint32_t high = col + 2 * j + 1 < p.cols ? dev::load_volatile(from + 2 * j + 1) : 0;
    pairs[j] = low | high << 16;
  }
}

// Copies x, all tokens of a column side by side; tokens beyond m repeat the last one.
template <class Config>
TAMIS_DEVICE void load_gap_x(const SpmmGapParams& p, uint32_t thread) {
  constexpr int kTokens = Config::kTokens, kPairs = kTokens == 4 ? 2 : 4;
  const int32_t step = 2 * kPairs * 32 * p.warps;
#pragma unroll 1
  for (int32_t col = 2 * kPairs * static_cast<int32_t>(thread); col < p.cols; col += step) {
    uint32_t pairs[kTokens][kPairs];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) load_gap_pairs(p, t, col, pairs[t]);
    const uint32_t to = p.x_at + col * Config::kColumnBytes;
    if constexpr (kTokens == 1) {
      dev::store_shared<dev::Word4>(to, {pairs[0][0], pairs[0][1], pairs[0][2], pairs[0][3]});
    } else {
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        uint32_t columns[2][kTokens / 2];  // of tokens by two
#pragma unroll
        for (int t = 0; t < kTokens / 2; ++t) {
          columns[0][t] = dev::byte_permute(pairs[2 * t][j], pairs[2 * t + 1][j], 0x5410);
          columns[1][t] = dev::byte_permute(pairs[2 * t][j], pairs[2 * t + 1][j], 0x7632);
        }
        if constexpr (kTokens == 2) {
          dev::store_shared<dev::Word2>(to + 8 * j, {columns[0][0], columns[1][0]});
        } else {
          dev::store_shared<dev::Word4>(
              to + 16 * j, {columns[0][0], columns[0][1], columns[1][0], columns[1][1]});
        }
      }
    }
  }
}

// c[t] += w * x of one entry.
template <class Config>
TAMIS_DEVICE void multiply_entry(float w, uint32_t at, float (&c)[Config::kTokens]) {
  if constexpr (Config::kTokens == 1) {
    c[0] = dev::fma(w, widen_low<Config::kType>(dev::load_shared_at<uint16_t>(at)), c[0]);
  } else if constexpr (Config::kTokens == 2) {
    const uint32_t x = dev::load_shared_at<uint32_t>(at);
    c[0] = dev::fma(w, widen_low<Config::kType>(x), c[0]);
    c[1] = dev::fma(w, widen_high<Config::kType>(x), c[1]);
  } else {
    const dev::Word2 x = dev::load_shared_at<dev::Word2>(at);
    c[0] = dev::fma(w, widen_low<Config::kType>(x.x), c[0]);
    c[1] = dev::fma(w, widen_high<Config::kType>(x.x), c[1]);
    c[2] = dev::fma(w, widen_low<Config::kType>(x.y), c[2]);
    c[3] = dev::fma(w, widen_high<Config::kType>(x.y), c[3]);
  }
}

// Multiplies one step's eight entries of this lane; `at`: where x of the last entry's column lies.
template <class Config>
TAMIS_DEVICE void multiply_step(const dev::Word4& value, uint32_t gaps, uint32_t& at,
                                float (&c)[2][Config::kTokens]) {
  constexpr uint32_t kByte = Config::kColumnBytes;
  const uint32_t pairs[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t four = (half == 0 ? gaps : gaps >> 4) & 0x0f0f0f0fu;
    uint32_t to[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t weights = kByte * (0x01010101u >> (8 * (3 - i)));
      to[i] = static_cast<uint32_t>(dev::dot_bytes(four, weights, static_cast<int32_t>(at)));
    }
    at = to[3];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t pair = pairs[2 * half + i / 2];
      const float w = i % 2 == 0 ? widen_low<Config::kType>(pair) : widen_high<Config::kType>(pair);
      multiply_entry<Config>(w, to[i], c[i % 2]);
    }
  }
}

// Adds up the block's warps, first part first: warp t has the sum of token t.
template <class Config>
TAMIS_DEVICE float reduce_gap_warps(const SpmmGapParams& p, uint32_t warp, uint32_t lane,
                                    const float (&c)[2][Config::kTokens]) {
  constexpr uint32_t kWarpBytes = 128 * Config::kTokens;
#pragma unroll
  for (int t = 0; t < Config::kTokens; ++t) {
    dev::store_shared<float>(kGapSumsAt + warp * kWarpBytes + 128 * t + 4 * lane,
                             c[0][t] + c[1][t]);
  }
  dev::sync_block();
  float sum = 0;
  if (warp < Config::kTokens) {
    for (int32_t other = 0; other < p.warps; ++other) {
      sum += dev::load_shared<float>(kGapSumsAt + other * kWarpBytes + 128 * warp + 4 * lane);
    }
  }
  return sum;
}

// Leaves this block's sums; true in the block that arrives last at its slice, with all added.
template <class Config>
TAMIS_DEVICE bool reduce_gap_blocks(const SpmmGapParams& p, int32_t slice, uint32_t thread,
                                    float* sum) {
  const uint32_t warp = thread / 32;
  const auto sums = [&](int32_t split) {
    return p.partial + (int64_t{split} * p.slices + slice) * Config::kTokens * 32 + thread;
  };
  if (warp < Config::kTokens) {
    dev::store_volatile(sums(static_cast<int32_t>(dev::block_index_y())), *sum);
  }
  if (!arrives_last(p.tickets + slice, static_cast<uint32_t>(p.splits), kGapFlagAt)) return false;
  if (warp < Config::kTokens) {
    *sum = 0;
    for (int32_t split = 0; split < p.splits; ++split) *sum += dev::load_volatile(sums(split));
  }
  return true;
}

// Grid [slices, splits] of 32 * warps threads.
template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * kMaxGapWarps, 2) spmm_gap(const SpmmGapParams p) {
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const auto slice = static_cast<int32_t>(dev::block_index_x());
  const uint32_t part = dev::block_index_y() * p.warps + warp;
  constexpr uint32_t kStepUnits = gap::kStepBytes / gap::kUnit;
  const GapSlice found(p, static_cast<uint32_t>(slice));
  const uint32_t steps = found.steps;
  const uint8_t* record = p.records + int64_t{found.unit} * gap::kUnit;
  const uint32_t first = steps * part >> p.parts_log2;
  const auto count = static_cast<int32_t>((steps * (part + 1) >> p.parts_log2) - first);

  // Weights do not depend on the kernel before, so their first steps are on their way while it
  // ends; x, the bias, the workspace and y wait for it.
  GapSteps<Config::kDepth> stream(
      record + int64_t{p.header_units + first * kStepUnits} * gap::kUnit, count, lane);
  const uint32_t row = dev::load_global(reinterpret_cast<const uint32_t*>(record) + lane);
  const uint32_t column = dev::load_global(
      reinterpret_cast<const uint16_t*>(record + gap::kRowBytes) + part * gap::kLanes + lane);
  dev::wait_for_previous();
  load_gap_x<Config>(p, thread);
  dev::sync_block();
  dev::allow_next();

  float c[2][Config::kTokens] = {};
  uint32_t at = dev::shared_address(p.x_at) + column * Config::kColumnBytes;
  for (int32_t i = 0; i < count; i += Config::kDepth) {
#pragma unroll
    for (int slot = 0; slot < Config::kDepth; ++slot) {
      if (i + slot >= count) break;  // the same in every lane
      multiply_step<Config>(stream.value[slot], stream.gap[slot], at, c);
      stream.request(slot);
    }
  }

  // Cold, and the last that y would wait for: on its way while sums meet.
  const bool writes = warp < static_cast<uint32_t>(p.m) && row != UINT32_MAX;
  const float bias = writes && p.bias ? widen<Config::kType>(dev::load_global(p.bias + row)) : 0.0f;
  float sum = reduce_gap_warps<Config>(p, warp, lane, c);
  if (p.splits > 1 && !reduce_gap_blocks<Config>(p, slice, thread, &sum)) return;
  if (writes) {
    p.y[warp * p.y_stride + row] = narrow<Config::kType>(sum + bias);
  }
}

}  // namespace tamis
