// Attention on CUDA when all is read: warps, then blocks are added up and the answer is written;
// see attend.cuh.
#pragma once

#include "base/cuda/ticket.h"
#include "ops/sparse_attention/attend_sums.cuh"

namespace tamis {

// Writes kCount neighbouring channels of row `of_tile` of the tile, if that exists.
template <class Config, int kCount>
TAMIS_DEVICE void write_channels(const AttentionCudaParams& p, const AttentionPlace& at,
                                 int32_t of_tile, uint32_t channel, const float (&weighted)[kCount],
                                 float sum) {
  const int32_t row = kRowsPerTile * at.row_tile + of_tile;
  if (row >= p.rows) return;
  const float per_sum = sum > 0 ? dev::reciprocal(sum) : 0.0f;
  const int64_t to = (int64_t{at.head} * p.rows + row) * Config::kDim + channel;
  const bool bf16 = p.q_dtype == DType::bf16;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float value = weighted[i] * per_sum;
    if (p.q_dtype == DType::f32) {
      static_cast<float*>(p.out)[to + i] = value;
    } else {
      const uint32_t pair = bf16 ? dev::pack_bf16(value, value) : dev::pack_f16(value, value);
      static_cast<uint16_t*>(p.out)[to + i] = static_cast<uint16_t>(pair);
    }
  }
}

// The logarithm of the sum of row `of_tile` of the tile, by one thread.
TAMIS_DEVICE void write_lse(const AttentionCudaParams& p, const AttentionPlace& at, int32_t of_tile,
                            float most, float sum) {
  const int32_t row = kRowsPerTile * at.row_tile + of_tile;
  if (p.lse == nullptr || row >= p.rows) return;
  p.lse[int64_t{at.head} * p.rows + row] = sum > 0 ? (most + dev::log2(sum)) * kLn2 : kNever;
}

// Rows of the tile that exist.
TAMIS_DEVICE int32_t rows_of(const AttentionCudaParams& p, const AttentionPlace& at) {
  const int32_t left = p.rows - kRowsPerTile * at.row_tile;
  return left < kRowsPerTile ? left : kRowsPerTile;
}

// What weights relative to `largest` count beside those relative to `most`, the larger.
TAMIS_DEVICE float share_of(float largest, float most) {
  return dev::exp2(largest - (most == kNever ? 0.0f : most));
}

// What follows runs once a block, and its instructions come from memory while others' pages do: it
// is short rather than unrolled (bench/results/gpu.md).

// What a warp leaves over its own ring, which nobody else reads: largest scores [8], sums [8], then
// weighted values [channel][kPitch], a pitch that spreads a warp's loads over the banks.
inline constexpr uint32_t kPitch = 4 * (kRowsPerTile + 2);
inline constexpr uint32_t kWarpSumsAt = 4 * kRowsPerTile, kWarpWeightedAt = 2 * kWarpSumsAt;

template <class Config>
inline constexpr uint32_t kRingBytes = static_cast<uint32_t>(Config::kStages) * Config::kBytes;

template <class Config>
TAMIS_DEVICE void leave_sums(const AttentionCudaParams& p, const AttentionPlace& at,
                             WarpSums<Config::kTiles>& s) {
  static_assert(kWarpWeightedAt + Config::kDim * kPitch <= kRingBytes<Config>, "over its own ring");
  const uint32_t to = kAttentionRingAt + at.warp * kRingBytes<Config>;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) s.sum[r] += dev::shuffle_xor(s.sum[r], mask);
    if (at.group == 0) {
      const uint32_t row = 4 * (2 * at.t + r);
      dev::store_shared<float>(to + row, s.most[r]);
      dev::store_shared<float>(to + kWarpSumsAt + row, s.sum[r]);
    }
  }
  if (2 * static_cast<int32_t>(at.t) >= rows_of(p, at)) return;
#pragma unroll
  for (int i = 0; i < Config::kTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto channel = static_cast<uint32_t>(Config::channel(i, at.group, half));
      dev::store_shared<dev::Word2>(
          to + kWarpWeightedAt + channel * kPitch + 8 * at.t,
          {dev::bits_of(s.weighted[i][2 * half]), dev::bits_of(s.weighted[i][2 * half + 1])});
    }
  }
}

// What each warp counts beside the others, behind what a warp leaves over its own ring, where the
// warp itself reads it: shares [warps][8], largest scores [8] and sums [8] of the block.
template <class Config>
struct Shares {
  static constexpr uint32_t kAt = kWarpWeightedAt + Config::kDim * kPitch;
  static constexpr uint32_t kRow = 4 * kRowsPerTile;  // of a warp, in bytes
  static constexpr uint32_t kMostAt = kAt + Config::kWarps * kRow, kSumAt = kMostAt + kRow;
  static_assert(kSumAt + kRow <= kRingBytes<Config>, "over its own ring");
};

// A lane a warp and row: every warp finds the same and meets nobody.
template <class Config>
TAMIS_DEVICE void share_out(const AttentionPlace& at, uint32_t rows) {
  using S = Shares<Config>;
  constexpr uint32_t kLaneRows = 32 / Config::kWarps;
  const uint32_t mine = kAttentionRingAt + at.warp * kRingBytes<Config>;
  const uint32_t warp = at.lane / kLaneRows;
#pragma unroll 1
  for (uint32_t first = 0; first < rows; first += kLaneRows) {  // the same in every lane
    const uint32_t row = first + at.lane % kLaneRows;
    const uint32_t from = kAttentionRingAt + warp * kRingBytes<Config> + 4 * row;
    const auto largest = dev::load_shared<float>(from);
    const auto added = dev::load_shared<float>(from + kWarpSumsAt);
    float most = largest;
#pragma unroll
    for (int mask = kLaneRows; mask < 32; mask *= 2) {
      most = dev::max(most, dev::shuffle_xor(most, mask));
    }
    const float share = share_of(largest, most);
    float sum = share * added;
#pragma unroll
    for (int mask = kLaneRows; mask < 32; mask *= 2) sum += dev::shuffle_xor(sum, mask);
    dev::store_shared<float>(mine + S::kAt + warp * S::kRow + 4 * row, share);
    if (warp == 0) dev::store_shared<float>(mine + S::kMostAt + 4 * row, most);
    if (warp == 0) dev::store_shared<float>(mine + S::kSumAt + 4 * row, sum);
  }
  dev::sync_warp();
}

// Two rows of one channel.
struct RowPair {
  float most[2], sum[2], weighted[2] = {0, 0};
};

// Rows 2 pair and 2 pair + 1 of a channel, of all warps of the block.
template <class Config>
TAMIS_DEVICE RowPair merge_warps(const AttentionPlace& at, uint32_t pair, uint32_t channel) {
  using S = Shares<Config>;
  RowPair all;
  const uint32_t mine = kAttentionRingAt + at.warp * kRingBytes<Config> + 8 * pair;
  const auto floats = [](uint32_t from, float (&x)[2]) {
    const auto v = dev::load_shared<dev::Word2>(from);
    x[0] = dev::float_of(v.x);
    x[1] = dev::float_of(v.y);
  };
#pragma unroll
  for (uint32_t w = 0; w < Config::kWarps; ++w) {
    float share[2], x[2];
    floats(mine + S::kAt + w * S::kRow, share);
    floats(
        kAttentionRingAt + w * kRingBytes<Config> + kWarpWeightedAt + channel * kPitch + 8 * pair,
        x);
#pragma unroll
    for (int r = 0; r < 2; ++r) all.weighted[r] += share[r] * x[r];
  }
  floats(mine + S::kMostAt, all.most);
  floats(mine + S::kSumAt, all.sum);
  return all;
}

// `count` neighbouring floats that another block wrote.
template <int kCount>
TAMIS_DEVICE void load_parts(const float* from, float (&x)[kCount]) {
  static_assert(kCount == 2 || kCount == 4, "8 or 16 bytes");
  if constexpr (kCount == 4) {
    const auto v = dev::load_volatile(reinterpret_cast<const dev::Word4*>(from));
    x[0] = dev::float_of(v.x);
    x[1] = dev::float_of(v.y);
    x[2] = dev::float_of(v.z);
    x[3] = dev::float_of(v.w);
  } else {
    const auto v = dev::load_volatile(reinterpret_cast<const dev::Word2*>(from));
    x[0] = dev::float_of(v.x);
    x[1] = dev::float_of(v.y);
  }
}

// Places of a part, in floats: weighted values [8][d], largest scores [8], sums [8].
template <class Config>
struct Part {
  static constexpr uint32_t kMost = kRowsPerTile * Config::kDim, kSum = kMost + kRowsPerTile;
  static constexpr uint32_t kAll = kSum + kRowsPerTile;        // attention_partial
  static constexpr uint32_t kSharedAt = Config::kSharedBytes;  // of the other block's
};

// The parts of all blocks: a warp a row and a lane a few channels, and where there are twice as
// many warps as rows, half of the parts each. What parts count, a lane a part, is on its way with
// them.
template <class Config>
TAMIS_DEVICE void merge_parts(const AttentionCudaParams& p, const AttentionPlace& at,
                              const float* parts) {
  using P = Part<Config>;
  constexpr int kChannels = Config::kDim / 32;  // of a lane
  constexpr int kAhead = 8;
  const int32_t rows = rows_of(p, at);
  const int32_t sides = 2 * rows <= Config::kWarps ? 2 : 1, step = Config::kWarps / sides;
  const int32_t side = static_cast<int32_t>(at.warp) >= step ? 1 : 0;
#pragma unroll 1
  for (int32_t row = static_cast<int32_t>(at.warp) - side * step; row < rows || sides > 1;
       row += step) {
    float most = kNever, sum = 0, mine[kChannels] = {};
    const int32_t splits = row < rows ? p.all_splits : 0;
#pragma unroll 1
    for (int32_t chunk = 0; chunk < splits; chunk += 32) {
      const int32_t end = splits < chunk + 32 ? splits : chunk + 32;
      const int32_t part = chunk + static_cast<int32_t>(at.lane);
      float theirs[kAhead][kChannels];
      const auto load = [&](int32_t first) {
        const float* from = parts + int64_t{first} * P::kAll + row * Config::kDim +
                            kChannels * static_cast<int32_t>(at.lane);
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          if (first + i * sides < end) load_parts(from, theirs[i]);
          from += sides * static_cast<int32_t>(P::kAll);
        }
      };
      load(chunk + side);
      float largest = kNever, added = 0;
      if (part < end) {
        const float* stats = parts + int64_t{part} * P::kAll + row;
        largest = dev::load_volatile(stats + P::kMost);
        added = dev::load_volatile(stats + P::kSum);
      }
      float larger = dev::max(most, largest);
#pragma unroll
      for (int mask = 1; mask < 32; mask *= 2) {
        larger = dev::max(larger, dev::shuffle_xor(larger, mask));
      }
      const float share = share_of(largest, larger), shrink = share_of(most, larger);
      added *= share;
#pragma unroll
      for (int mask = 1; mask < 32; mask *= 2) added += dev::shuffle_xor(added, mask);
      sum = sum * shrink + added;
      most = larger;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) mine[c] *= shrink;
#pragma unroll 1
      for (int32_t first = chunk + side; first < end; first += kAhead * sides) {
        if (first != chunk + side) load(first);
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          const int32_t split = first + i * sides;
          const int32_t bits = dev::shuffle(static_cast<int32_t>(dev::bits_of(share)), split % 32);
          if (split >= end) continue;
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            mine[c] += dev::float_of(static_cast<uint32_t>(bits)) * theirs[i][c];
          }
        }
      }
    }
    if (sides > 1) {  // every warp comes here once
      const uint32_t meet = kAttentionRingAt + 4 * static_cast<uint32_t>(row * Config::kDim);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (side == 1) dev::store_shared<float>(meet + 4 * (32 * c + at.lane), mine[c]);
      }
      dev::sync_block();
      if (side == 1) return;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        mine[c] += dev::load_shared<float>(meet + 4 * (32 * c + at.lane));
      }
    }
    write_channels<Config>(p, at, row, kChannels * at.lane, mine, sum);
    if (at.lane == 0) write_lse(p, at, row, most, sum);
    if (sides > 1) return;
  }
}

// At the start of two blocks that are a cluster: the first makes ready for a part.
template <class Config>
TAMIS_DEVICE void expect_part(const AttentionCudaParams& p, const AttentionPlace& at) {
  if (dev::block_index_x() == 0 && dev::thread_index() == 0) {
    dev::barrier_init(kAttentionMeetAt);
    dev::fence_barrier_init();
    const auto rows = static_cast<uint32_t>(rows_of(p, at));
    dev::barrier_expect(kAttentionMeetAt, 4 * rows * (Config::kDim + 2));
  }
  dev::arrive_cluster_unordered();
}

// The second block's part joins what the first has of a row's channel.
template <class Config>
TAMIS_DEVICE void add_part(uint32_t row, uint32_t channel, float* most, float* sum,
                           float* weighted) {
  using P = Part<Config>;
  const auto theirs = [](uint32_t place) {
    return dev::load_shared<float>(P::kSharedAt + 4 * place);
  };
  const float largest = theirs(P::kMost + row), larger = dev::max(*most, largest);
  const float mine = share_of(*most, larger), other = share_of(largest, larger);
  *most = larger;
  *sum = *sum * mine + theirs(P::kSum + row) * other;
  *weighted = *weighted * mine + theirs(row * Config::kDim + channel) * other;
}

// Adds up the block's warps and leaves that as a part, of which the block that arrives last adds up
// all and writes the answer; with one block there are no parts, and of two that are a cluster the
// second sends its own to the first.
template <class Config, bool kBulk>
TAMIS_DEVICE void finish(const AttentionCudaParams& p, const AttentionPlace& at,
                         WarpSums<Config::kTiles>& s) {
  using P = Part<Config>;
  constexpr uint32_t kThreads = 32 * Config::kWarps;
  static_assert(kThreads % Config::kDim == 0, "a thread a channel");
  const bool cluster = kBulk && p.cluster, sends = cluster && dev::block_index_x() > 0;
  leave_sums<Config>(p, at, s);
  if (cluster) dev::wait_cluster();
  dev::sync_block();
  if (p.first_split > 0) dev::wait_for_previous();  // in every block: a later kernel sees all parts
  const uint32_t thread = dev::thread_index(), channel = thread % Config::kDim;
  const auto rows = static_cast<uint32_t>(rows_of(p, at));
  float* parts = p.partial + int64_t{dev::block_index_y()} * p.all_splits * P::kAll;
  float* mine =
      parts + (p.first_split + static_cast<int32_t>(dev::block_index_x())) * int64_t{P::kAll};
  const auto leave = [&](uint32_t place, float x) {
    if (sends) {
      dev::send_cluster(0, P::kSharedAt + 4 * place, dev::bits_of(x), kAttentionMeetAt);
    } else {
      dev::store_volatile(mine + place, x);
    }
  };
  share_out<Config>(at, rows);
  for (uint32_t pair = thread / Config::kDim; 2 * pair < rows; pair += kThreads / Config::kDim) {
    RowPair all = merge_warps<Config>(at, pair, channel);
    if (cluster && !sends) dev::barrier_wait(kAttentionMeetAt, 0);
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t row = 2 * pair + r;
      if (row >= rows) continue;
      if (sends || (!cluster && p.all_splits > 1)) {
        leave(row * Config::kDim + channel, all.weighted[r]);
        if (channel == 0) leave(P::kMost + row, all.most[r]);
        if (channel == 0) leave(P::kSum + row, all.sum[r]);
        continue;
      }
      if (cluster) add_part<Config>(row, channel, &all.most[r], &all.sum[r], &all.weighted[r]);
      const float weighted[1] = {all.weighted[r]};
      write_channels<Config>(p, at, static_cast<int32_t>(row), channel, weighted, all.sum[r]);
      if (channel == 0) write_lse(p, at, static_cast<int32_t>(row), all.most[r], all.sum[r]);
    }
  }
  if (cluster || p.all_splits == 1 || !p.last) return;  // the last: a later launch adds up
  if (arrives_last(p.tickets + dev::block_index_y(), static_cast<uint32_t>(p.splits),
                   kAttentionFlagAt)) {
    merge_parts<Config>(p, at, parts);
  }
}

}  // namespace tamis
