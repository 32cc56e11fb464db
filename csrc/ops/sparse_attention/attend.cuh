// out[r] = sum_t p[r,t] v[t] / sum_t p[r,t], p = exp(f(scale q[r] . k[t]) + bias[t]), over the
// tokens of one segment, 8 query rows of a KV head at a time, on tensor cores with f32 sums. Tile:
// a warp takes a unit of 16 or 32 tokens as the 16-row operand (scores) and its transposed values
// as another (output), so up to 8 query rows cost one pass and their weights cross from one product
// to the next by transposing 8 x 8 blocks in registers. Warps stream their own units through rings
// in shared memory; nothing waits for another warp before the end. Reduction: online softmax a
// warp, then warps, then blocks in the workspace, added by the block that arrives last, always in
// the same order, so results repeat bit for bit. Needs: tickets zero before the first call; every
// call leaves them zero. Tail: the last unit of rows repeats its last token, which does not count.
// After: Dao 2023 (flash-decoding), Liu et al. 2024 (KIVI).
#pragma once

#include "base/cuda/dev.h"
#include "ops/sparse_attention/attention_params.h"

namespace tamis {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;
inline constexpr float kNever = -__builtin_inff();

// What a warp accumulates: rows 2t and 2t + 1 of the block's 8 in lane 4g + t; scores times log2 e.
template <int kTiles>  // of 16 channels
struct WarpSums {
  float most[2] = {kNever, kNever};
  float sum[2] = {0, 0};  // of this lane's tokens
  float weighted[kTiles][4] = {};
};

// Four neighbouring channels of a query row at each of the places first + at(step), zeros where the
// row does not exist: all loads are on their way before the first is looked at.
template <int kSteps, class At>
TAMIS_DEVICE void q_fours(const AttentionCudaParams& p, int64_t first, bool exists, const At& at,
                          float (&x)[kSteps][4]) {
  if (p.q_dtype == DType::f32) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      dev::Word4 v{0, 0, 0, 0};
      const float* from = static_cast<const float*>(p.q) + first + at(step);
      if (exists) v = dev::load_global(reinterpret_cast<const dev::Word4*>(from));
      x[step][0] = dev::float_of(v.x);
      x[step][1] = dev::float_of(v.y);
      x[step][2] = dev::float_of(v.z);
      x[step][3] = dev::float_of(v.w);
    }
    return;
  }
  dev::Word2 v[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    v[step] = {0, 0};
    const uint16_t* from = static_cast<const uint16_t*>(p.q) + first + at(step);
    if (exists) v[step] = dev::load_global(reinterpret_cast<const dev::Word2*>(from));
  }
  const bool bf16 = p.q_dtype == DType::bf16;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint32_t pair[2] = {v[step].x, v[step].y};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto bits = static_cast<uint16_t>(pair[i / 2] >> (16 * (i % 2)));
      x[step][i] = bf16 ? dev::bf16_to_f32(bits) : dev::f16_to_f32(bits);
    }
  }
}

// The block's place.
struct AttentionPlace {
  int32_t head, batch, kv_head, row_tile;  // head: batch and KV head as one number
  int32_t units;                           // listed for this head, from entry `first` on
  int32_t first = 0;
  uint32_t warp, lane, group, t;  // lane = 4 * group + t

  // Of the only row tile of a head that reads what is no list in memory.
  TAMIS_DEVICE AttentionPlace(int32_t head_of, int32_t batch_of, int32_t kv_head_of)
      : head(head_of), batch(batch_of), kv_head(kv_head_of), row_tile(0), units(0) {
    number(dev::thread_index());
  }
  TAMIS_DEVICE explicit AttentionPlace(const AttentionCudaParams& p) {
    const auto y = static_cast<int32_t>(dev::block_index_y());
    head = y / p.row_tiles;
    row_tile = y % p.row_tiles;
    batch = head / p.kv_heads;
    kv_head = head % p.kv_heads;
    number(dev::thread_index());
    units = p.listed;
    if (p.count != nullptr) {
      const int32_t count = dev::load_global(p.count + head);
      units = count < 0 ? 0 : count < units ? count : units;
    }
  }

 private:
  TAMIS_DEVICE void number(uint32_t thread) {
    warp = thread / 32;
    lane = thread % 32;
    group = lane / 4;
    t = lane % 4;
  }
};

// Scores to weights: c[i][j] = q . k of token id(i, j / 2) and row 2t + j % 2. `factor`: what
// makes scores of them. Keeps `s` in step.
template <int kScoreTiles, int kTiles, class Id>
TAMIS_DEVICE void soften(const AttentionCudaParams& p, const AttentionPlace& at,
                         const float (&factor)[2], bool masked, const Id& id,
                         float (&c)[kScoreTiles][4], WarpSums<kTiles>& s) {
  if (p.softcap > 0) {
#pragma unroll
    for (int i = 0; i < kScoreTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float x = c[i][j] * factor[j % 2] * p.per_softcap;
        const float e = dev::exp2(-2 * kLog2E * (x < 0 ? -x : x));
        const float tanh = (1 - e) / (1 + e);
        c[i][j] = kLog2E * p.softcap * (x < 0 ? -tanh : tanh);
      }
    }
  } else {
    const float scale[2] = {factor[0] * kLog2E, factor[1] * kLog2E};
#pragma unroll
    for (int i = 0; i < kScoreTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) c[i][j] *= scale[j % 2];
    }
  }
  if (masked) {
    const int32_t begin = p.begin ? dev::load_global(p.begin + at.head) : 0;
    const int32_t end = p.end ? dev::load_global(p.end + at.head) : p.tokens;
#pragma unroll
    for (int i = 0; i < kScoreTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int32_t token = id(i, half);
        const bool counts = token >= 0 && token >= begin && token < end;
        const float bias =
            counts && p.bias ? dev::load_global(p.bias + int64_t{at.head} * p.tokens + token) : 0;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float& score = c[i][2 * half + r];
          score = counts ? score + kLog2E * bias : kNever;
        }
      }
    }
  }
  float shift[2];
  bool moved = false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float most = s.most[r];
#pragma unroll
    for (int i = 0; i < kScoreTiles; ++i) most = dev::max(most, dev::max(c[i][r], c[i][2 + r]));
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) most = dev::max(most, dev::shuffle_xor(most, mask));
    shift[r] = most;
    moved = moved || most > s.most[r];
  }
  if (dev::ballot(moved) != 0) {  // the same in every lane
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float shrink = shift[r] > s.most[r] ? dev::exp2(s.most[r] - shift[r]) : 1.0f;
      s.most[r] = shift[r];
      s.sum[r] *= shrink;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        s.weighted[i][r] *= shrink;
        s.weighted[i][2 + r] *= shrink;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float from = shift[r] == kNever ? 0.0f : shift[r];
#pragma unroll
    for (int i = 0; i < kScoreTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        c[i][2 * half + r] = dev::exp2(c[i][2 * half + r] - from);
        s.sum[r] += c[i][2 * half + r];
      }
    }
  }
}

// Of one channel, in thread `channel`: writes the answer of all rows.
template <class Config>
TAMIS_DEVICE void write_channel(const AttentionCudaParams& p, const AttentionPlace& at,
                                const float (&weighted)[kRowsPerTile], uint32_t sums_at) {
  const uint32_t channel = dev::thread_index();
#pragma unroll
  for (int r = 0; r < kRowsPerTile; ++r) {
    const int32_t row = kRowsPerTile * at.row_tile + r;
    if (row >= p.rows) continue;
    const auto sum = dev::load_shared<float>(sums_at + 4 * r);
    const float value = sum > 0 ? weighted[r] / sum : 0.0f;
    const int64_t to = (int64_t{at.head} * p.rows + row) * Config::kDim + channel;
    if (p.q_dtype == DType::f32) {
      static_cast<float*>(p.out)[to] = value;
    } else {
      static_cast<uint16_t*>(p.out)[to] =
          p.q_dtype == DType::bf16 ? dev::f32_to_bf16(value) : dev::f32_to_f16(value);
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

// Shared memory of the end, over the rings: largest scores and sums [warps or splits][8], then
// weighted values [warps][channel][kPitch], a pitch that spreads a warp's stores over the banks.
inline constexpr uint32_t kEndMostAt = kAttentionRingAt;
inline constexpr uint32_t kEndSumAt = kEndMostAt + 32 * kAttentionWarps;
inline constexpr uint32_t kEndWeightedAt = kEndSumAt + 32 * kAttentionWarps;
inline constexpr uint32_t kPitch = 4 * (kRowsPerTile + 2);

// Adds up the block's warps: thread `channel` gets that channel of all rows; the first eight
// threads have largest scores and sums of a row in *most and *sum.
template <class Config>
TAMIS_DEVICE void merge_warps(const AttentionPlace& at, WarpSums<Config::kTiles>& s,
                              float (&weighted)[kRowsPerTile], float* most, float* sum) {
  constexpr uint32_t kWarpBytes = Config::kDim * kPitch;
  dev::sync_block();  // nobody reads its ring any more
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) s.sum[r] += dev::shuffle_xor(s.sum[r], mask);
    if (at.group == 0) {
      dev::store_shared<float>(kEndMostAt + 4 * (8 * at.warp + 2 * at.t + r), s.most[r]);
    }
  }
  dev::sync_block();
  float shrink[2];
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
    float all = kNever;
#pragma unroll
    for (uint32_t w = 0; w < Config::kWarps; ++w) {
      all = dev::max(all, dev::load_shared<float>(kEndMostAt + 4 * (8 * w + 2 * at.t + r)));
    }
    shrink[r] = s.most[r] == kNever ? 0.0f : dev::exp2(s.most[r] - all);
    if (at.group == 0) {
      dev::store_shared<float>(kEndSumAt + 4 * (8 * at.warp + 2 * at.t + r), s.sum[r] * shrink[r]);
    }
  }
#pragma unroll
  for (int i = 0; i < Config::kTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto channel = static_cast<uint32_t>(Config::channel(i, at.group, half));
      const uint32_t to = kEndWeightedAt + at.warp * kWarpBytes + channel * kPitch + 8 * at.t;
      dev::store_shared<dev::Word2>(to, {dev::bits_of(s.weighted[i][2 * half] * shrink[0]),
                                         dev::bits_of(s.weighted[i][2 * half + 1] * shrink[1])});
    }
  }
  dev::sync_block();
  const uint32_t thread = dev::thread_index();
  if (thread < kRowsPerTile) {
    for (uint32_t w = 0; w < Config::kWarps; ++w) {
      *most = dev::max(*most, dev::load_shared<float>(kEndMostAt + 4 * (8 * w + thread)));
      *sum += dev::load_shared<float>(kEndSumAt + 4 * (8 * w + thread));
    }
  }
  if (thread >= Config::kDim) return;
#pragma unroll
  for (uint32_t w = 0; w < Config::kWarps; ++w) {
#pragma unroll
    for (uint32_t r = 0; r < kRowsPerTile; r += 2) {
      const auto pair =
          dev::load_shared<dev::Word2>(kEndWeightedAt + w * kWarpBytes + thread * kPitch + 4 * r);
      weighted[r] += dev::float_of(pair.x);
      weighted[r + 1] += dev::float_of(pair.y);
    }
  }
}

// What the last block adds up of a part: rows that exist.
TAMIS_DEVICE int32_t rows_of(const AttentionCudaParams& p, const AttentionPlace& at) {
  const int32_t left = p.rows - kRowsPerTile * at.row_tile;
  return left < kRowsPerTile ? left : kRowsPerTile;
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

// What weights relative to `largest` count beside those relative to `most`.
TAMIS_DEVICE float share_of(float largest, float most) {
  return largest == kNever ? 0.0f : dev::exp2(largest - most);
}

// The parts of all blocks: what each counts, a warp a row and a lane a part; then each warp adds up
// some of the parts, all lanes its channels, and a thread a channel the four sums. kRows: 4 or 8,
// at least those that exist.
template <class Config, int kRows>
TAMIS_DEVICE void merge_parts(const AttentionCudaParams& p, const AttentionPlace& at,
                              const float* parts) {
  constexpr int64_t kPartial = int64_t{Config::kDim + 2} * kRowsPerTile;
  constexpr int kChannels = Config::kDim / 32;  // of a lane
  constexpr uint32_t kWarpBytes = 4 * kRowsPerTile * Config::kDim;
  const int32_t rows = rows_of(p, at);
  const uint32_t sums_at = kEndMostAt, shares_at = sums_at + 4 * kRowsPerTile;
  for (auto row = static_cast<int32_t>(at.warp); row < rows; row += Config::kWarps) {
    const auto at_row = [&](int32_t split) {
      return shares_at + 4 * static_cast<uint32_t>(split * kRowsPerTile + row);
    };
    const float* stats = parts + kRowsPerTile * Config::kDim + row;
    float mine = kNever, sum = 0;  // of this lane's parts
    for (auto split = static_cast<int32_t>(at.lane); split < p.all_splits; split += 32) {
      const float theirs = dev::load_volatile(stats + split * kPartial);
      const float added = dev::load_volatile(stats + split * kPartial + kRowsPerTile);
      dev::store_shared<float>(at_row(split), theirs);
      const float larger = dev::max(mine, theirs);
      sum = sum * share_of(mine, larger) + added * share_of(theirs, larger);
      mine = larger;
    }
    float most = mine;
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) most = dev::max(most, dev::shuffle_xor(most, mask));
    sum *= share_of(mine, most);
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) sum += dev::shuffle_xor(sum, mask);
    for (auto split = static_cast<int32_t>(at.lane); split < p.all_splits; split += 32) {
      const auto largest = dev::load_shared<float>(at_row(split));
      dev::store_shared<float>(at_row(split), share_of(largest, most));
    }
    if (at.lane == 0) {
      dev::store_shared<float>(sums_at + 4 * static_cast<uint32_t>(row), sum);
      write_lse(p, at, row, most, sum);
    }
  }
  dev::sync_block();
  float mine[kRows][kChannels] = {};
#pragma unroll 4
  for (auto split = static_cast<int32_t>(at.warp); split < p.all_splits; split += Config::kWarps) {
    const float* from = parts + split * kPartial + kChannels * at.lane;
    const uint32_t share_at = shares_at + 4 * kRowsPerTile * static_cast<uint32_t>(split);
    float theirs[kRows]
                [kChannels];  // of rows that do not exist: whatever lies there, never written
#pragma unroll
    for (int r = 0; r < kRows; ++r) load_parts(from + r * Config::kDim, theirs[r]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const auto share = r < rows ? dev::load_shared<float>(share_at + 4 * r) : 0.0f;
#pragma unroll
      for (int i = 0; i < kChannels; ++i) mine[r][i] += share * theirs[r][i];
    }
  }
  dev::sync_block();  // nobody reads shares any more
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const uint32_t channel = kChannels * at.lane + static_cast<uint32_t>(i);
      dev::store_shared<float>(shares_at + at.warp * kWarpBytes +
                                   4 * (static_cast<uint32_t>(r) * Config::kDim + channel),
                               mine[r][i]);
    }
  }
  dev::sync_block();
  const uint32_t thread = dev::thread_index();
  if (thread >= Config::kDim) return;
  float weighted[kRowsPerTile] = {};
#pragma unroll
  for (uint32_t w = 0; w < Config::kWarps; ++w) {
#pragma unroll
    for (uint32_t r = 0; r < kRows; ++r) {
      weighted[r] +=
          dev::load_shared<float>(shares_at + w * kWarpBytes + 4 * (r * Config::kDim + thread));
    }
  }
  write_channel<Config>(p, at, weighted, sums_at);
}

// Leaves the block's sums as a part [8][d], [8], [8]; the block that arrives last adds up all parts
// and writes the answer. With one block there are no parts.
template <class Config>
TAMIS_DEVICE void finish(const AttentionCudaParams& p, const AttentionPlace& at,
                         WarpSums<Config::kTiles>& s) {
  static_assert(Config::kDim <= 32 * Config::kWarps, "a thread a channel");
  const uint32_t thread = dev::thread_index();
  float weighted[kRowsPerTile] = {}, most = kNever, sum = 0;
  merge_warps<Config>(at, s, weighted, &most, &sum);
  if (p.all_splits == 1) {
    if (thread < kRowsPerTile) {
      dev::store_shared<float>(kEndSumAt + 4 * thread, sum);  // read by this thread alone before
      write_lse(p, at, static_cast<int32_t>(thread), most, sum);
    }
    dev::sync_block();
    if (thread < Config::kDim) write_channel<Config>(p, at, weighted, kEndSumAt);
    return;
  }
  if (p.first_split > 0) dev::wait_for_previous();  // in every block: a later kernel sees all parts
  constexpr int64_t kPartial = int64_t{Config::kDim + 2} * kRowsPerTile;  // attention_partial
  float* parts = p.partial + int64_t{dev::block_index_y()} * p.all_splits * kPartial;
  float* mine = parts + (p.first_split + static_cast<int32_t>(dev::block_index_x())) * kPartial;
  if (thread < Config::kDim) {
#pragma unroll
    for (int r = 0; r < kRowsPerTile; ++r) {
      if (r < rows_of(p, at)) dev::store_volatile(mine + r * Config::kDim + thread, weighted[r]);
    }
  }
  if (thread < kRowsPerTile) {
    dev::store_volatile(mine + kRowsPerTile * Config::kDim + thread, most);
    dev::store_volatile(mine + kRowsPerTile * Config::kDim + 8 + thread, sum);
  }
  if (!p.last) return;  // a later launch adds up
  dev::sync_block();
  if (thread == 0) {
    dev::fence_device();  // for what all threads of the block wrote before the barrier
    uint32_t* ticket = p.tickets + dev::block_index_y();
    const bool last = dev::atomic_add(ticket, 1) + 1 == static_cast<uint32_t>(p.splits);
    if (last) *ticket = 0;
    dev::fence_device();
    dev::store_shared<uint32_t>(kAttentionFlagAt, last);
  }
  dev::sync_block();
  if (dev::load_shared<uint32_t>(kAttentionFlagAt) == 0) return;
  if (rows_of(p, at) <= 4) {
    merge_parts<Config, 4>(p, at, parts);
  } else {
    merge_parts<Config, kRowsPerTile>(p, at, parts);
  }
}

// Grid [splits, heads * row_tiles] of 32 * Config::kWarps.
template <class Config, bool kBulk>
TAMIS_DEVICE void attend(const AttentionCudaParams& p) {
  // The first launch of a call waits for those before, so that what begins after it need not: it
  // runs beside it.
  if (p.first_split == 0) dev::wait_for_previous();
  dev::allow_next();
  AttentionPlace at(p);
  at.first = Config::hidden(p, at);
  at.units -= at.first;
  const auto split = static_cast<int32_t>(dev::block_index_x());
  const int32_t tiles = Config::tiles_of(at.units);
  // Blocks take turns, so that those of a head read from one place of memory at a time.
  const int32_t first = split * Config::kWarps + static_cast<int32_t>(at.warp);
  const int32_t step = p.splits * Config::kWarps;
  typename Config::template Ring<kBulk> ring(p, at, first, tiles, step);
  ring.start();
  typename Config::Query query(p, at);
  WarpSums<Config::kHeldTiles> held;
  for (int32_t tile = first; tile < tiles; tile += step) {
    Config::add_tile(p, at, query, ring.wait(), tile, held);
    ring.release();
  }
  WarpSums<Config::kTiles> sums;
  Config::join(at, held, sums);
  finish<Config>(p, at, sums);
}

}  // namespace tamis
