// Attention on CUDA while it reads: a block's place, what a warp accumulates, scores to weights;
// see attend.cuh.
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
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
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint32_t pair[2] = {v[step].x, v[step].y};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto bits = static_cast<uint16_t>(pair[i / 2] >> (16 * (i % 2)));
      x[step][i] = widen(p.q_dtype, bits);
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
    head = divided(y, p.per_row_tiles);
    row_tile = y - head * p.row_tiles;
    batch = divided(head, p.per_kv_heads);
    kv_head = head - batch * p.kv_heads;
    number(dev::thread_index());
    units = p.listed;
    if (p.count != nullptr) {
      const int32_t count = dev::load_global(p.count + head);
      units = count < 0 ? 0 : count < units ? count : units;
    }
  }

 private:
  static TAMIS_DEVICE int32_t divided(int32_t x, uint32_t by) {
    return static_cast<int32_t>(uint64_t{static_cast<uint32_t>(x)} * by >> kAttentionShift);
  }
  TAMIS_DEVICE void number(uint32_t thread) {
    warp = thread / 32;
    lane = thread % 32;
    group = lane / 4;
    t = lane % 4;
  }
};

// Which tokens count, and what is added to their scores.
struct AttentionMask {
  const int32_t *begin, *end;
  const float* bias;
  int32_t tokens;
};

// Scores to weights: c[i][j] = q . k of token id(i, j / 2) and row 2t + j % 2. `factor`: what
// makes scores of them. Keeps `s` in step.
template <int kScoreTiles, int kTiles, class Id>
TAMIS_DEVICE void soften(const AttentionCudaParams& p, const AttentionMask& mask,
                         const AttentionPlace& at, const float (&factor)[2], bool masked,
                         const Id& id, float (&c)[kScoreTiles][4], WarpSums<kTiles>& s) {
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
    const int32_t begin = mask.begin ? dev::load_global(mask.begin + at.head) : 0;
    const int32_t end = mask.end ? dev::load_global(mask.end + at.head) : mask.tokens;
#pragma unroll
    for (int i = 0; i < kScoreTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int32_t token = id(i, half);
        const bool counts = token >= 0 && token >= begin && token < end;
        const float bias =
            counts && mask.bias
                ? dev::load_global(mask.bias + int64_t{at.head} * mask.tokens + token)
                : 0;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float& score = c[i][2 * half + r];
          score = counts ? score + kLog2E * bias : kNever;
        }
      }
    }
  }
  float shift[2];  // of the warp; first of this lane
  bool moved = false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    shift[r] = s.most[r];
#pragma unroll
    for (int i = 0; i < kScoreTiles; ++i) {
      shift[r] = dev::max(shift[r], dev::max(c[i][r], c[i][2 + r]));
    }
    moved = moved || shift[r] > s.most[r];
  }
  if (dev::ballot(moved) != 0) {  // the same in every lane; else all have s.most
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) {
        shift[r] = dev::max(shift[r], dev::shuffle_xor(shift[r], mask));
      }
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

// The same by what the segment of the launch says.
template <int kScoreTiles, int kTiles, class Id>
TAMIS_DEVICE void soften(const AttentionCudaParams& p, const AttentionPlace& at,
                         const float (&factor)[2], bool masked, const Id& id,
                         float (&c)[kScoreTiles][4], WarpSums<kTiles>& s) {
  soften(p, AttentionMask{p.begin, p.end, p.bias, p.tokens}, at, factor, masked, id, c, s);
}

}  // namespace tamis
