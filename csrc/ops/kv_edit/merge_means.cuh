// kv_merge, last of three passes: means of kept tokens and of those that joined them. A warp adds
// up one kept token's keys or values: its block looks through who joined whom 2048 entries at a
// time, and each warp takes its own in their order, four on their way at a time. Tried: a warp that
// looks through the list alone spends ten times the instructions; loads behind a branch for each
// member take five times as long (bench/results/gpu.md).
#pragma once

#include "base/cuda/halves.h"
#include "ops/kv_edit/merge.cuh"

namespace tamis {

// A lane's channels of a token's key or value as stored: four neighbours of every 128.
template <DType kType>
struct MergeRow {
  dev::Word4 words[2] = {};  // of 16 bits: two

  TAMIS_DEVICE void load(const uint8_t* row, uint32_t lane, int32_t dim, bool wanted) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int32_t c = 128 * j + 4 * static_cast<int32_t>(lane);
      const bool there = wanted && c < dim;
      if constexpr (kType == DType::f32) {
        dev::load_stream_if(there, reinterpret_cast<const dev::Word4*>(row) + c / 4, words[j]);
      } else {
        dev::Word2 pairs{0, 0};
        dev::load_stream_if(there, reinterpret_cast<const dev::Word2*>(row) + c / 4, pairs);
        words[j] = {pairs.x, pairs.y, 0, 0};
      }
    }
  }
  TAMIS_DEVICE void unpack(int j, float (&x)[4]) const {
    const uint32_t all[4] = {words[j].x, words[j].y, words[j].z, words[j].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kType == DType::f32) {
        x[i] = dev::float_of(all[i]);
      } else {
        const auto bits = static_cast<uint16_t>(all[i / 2] >> (16 * (i % 2)));
        x[i] = widen<kType>(bits);
      }
    }
  }
  // Four channels to element `at`.
  static TAMIS_DEVICE void store(void* to, int64_t at, const float (&x)[4]) {
    if constexpr (kType == DType::f32) {
      *reinterpret_cast<dev::Word4*>(static_cast<float*>(to) + at) = {
          dev::bits_of(x[0]), dev::bits_of(x[1]), dev::bits_of(x[2]), dev::bits_of(x[3])};
    } else {
      *reinterpret_cast<dev::Word2*>(static_cast<uint16_t*>(to) + at) = {pack<kType>(x[0], x[1]),
                                                                         pack<kType>(x[2], x[3])};
    }
  }
};

// Sums over one kept token and who joined it.
template <DType kType>
struct MergeSums {
  const MergeHead& h;
  int kind;  // 0: keys, 1: values
  uint32_t lane;
  float sum[2][4] = {};
  float weight = 0, mass = 0;
  int32_t members = 0;

  TAMIS_DEVICE const uint8_t* row(int32_t token) const {
    return h.rows(kind) + token * h.step(kind);
  }
  // The tokens of the lanes in `left`, in their order; other lanes name any that there is.
  TAMIS_DEVICE void add(uint32_t left, int32_t token) {
    constexpr int kAtOnce = 4;
    const int64_t at = h.head * h.p.tokens + token;
    const float own_weight = h.p.weight ? dev::load_volatile(h.p.weight + at) : 1.0f;
    const float own_mass = h.p.mass ? dev::load_volatile(h.p.mass + at) : 1.0f;
    const auto of_lane = [](float x, int from) {
      return dev::float_of(
          static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(dev::bits_of(x)), from)));
    };
    while (left != 0) {  // the same in every lane
      MergeRow<kType> rows[kAtOnce];
      int from[kAtOnce];
      bool there[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        there[k] = left != 0;
        from[k] = there[k] ? dev::popcount((left & -left) - 1) : 0;
        left &= left - 1;
        rows[k].load(row(dev::shuffle(token, from[k])), lane, h.p.dim, there[k]);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const float w = of_lane(own_weight, from[k]), m = of_lane(own_mass, from[k]);
        if (!there[k]) continue;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float x[4];
          rows[k].unpack(j, x);
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[j][i] = dev::fma(w, x[i], sum[j][i]);
        }
        weight += w;
        mass += m;
        ++members;
      }
    }
  }
  TAMIS_DEVICE void write(int32_t place) const {
    const MergeParams& p = h.p;
    const int64_t to = h.head * p.kept.stride + place;
    if (kind == 1 && lane == 0) p.out_mass[to] = mass;
    // One token, or several of no weight at all: as it was.
    const bool alone = members == 1 || !(weight > 0);
    const float inverse = alone ? 0.0f : dev::divide(1.0f, weight);
    MergeRow<kType> own;
    own.load(row(h.token(p.kept, place)), lane, p.dim, alone);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int32_t c = 128 * j + 4 * static_cast<int32_t>(lane);
      if (c >= p.dim) continue;
      float x[4];
      own.unpack(j, x);
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = alone ? x[i] : sum[j][i] * inverse;
      MergeRow<kType>::store(kind == 0 ? p.out_keys : p.out_values, to * p.dim + c, x);
    }
  }
};

// Entries of who joined whom that are of this block's kept tokens, in order, into shared memory:
// low half of a word the entry's number from `base` on, high half the warp. Returns how many.
TAMIS_DEVICE int32_t merge_find(const MergeHead& h, int32_t base, int32_t first) {
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const int32_t* joined = h.p.joined + h.head * h.p.dropped.stride;
  const auto number = static_cast<int32_t>(32 * kMergeEntries * warp + lane);
  uint32_t of[kMergeEntries], found[kMergeEntries];
#pragma unroll
  for (int j = 0; j < kMergeEntries; ++j) {
    const int32_t i = base + number + 32 * j;
    of[j] = i < h.dropped ? static_cast<uint32_t>(dev::load_volatile(joined + i) - first) : ~0u;
  }
  int32_t mine = 0;
#pragma unroll
  for (int j = 0; j < kMergeEntries; ++j) {
    found[j] = dev::ballot(of[j] < kMergeWarps);
    mine += dev::popcount(found[j]);
  }
  if (lane == 0) dev::store_shared<int32_t>(4 * warp, mine);
  dev::sync_block();
  int32_t all = 0, to = 0;
#pragma unroll
  for (uint32_t w = 0; w < kMergeWarps; ++w) {
    const auto theirs = dev::load_shared<int32_t>(4 * w);
    to += w < warp ? theirs : 0;
    all += theirs;
  }
#pragma unroll
  for (int j = 0; j < kMergeEntries; ++j) {
    const int32_t place = to + dev::popcount(found[j] & ((1u << lane) - 1));
    if (of[j] < kMergeWarps) {
      dev::store_shared<uint32_t>(kMergeFoundAt + 4 * static_cast<uint32_t>(place),
                                  of[j] << 16 | static_cast<uint32_t>(number + 32 * j));
    }
    to += dev::popcount(found[j]);
  }
  dev::sync_block();
  return all;
}

// Grid [kept tokens / kMergeWarps, times two where keys are merged; heads] of kMergeThreads.
template <DType kType>
TAMIS_DEVICE void merge_join(const MergeParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const MergeHead h(p);
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const auto x = static_cast<int32_t>(dev::block_index_x());
  const int32_t kind = p.out_keys == nullptr ? 1 : x % 2;
  const int32_t first = (p.out_keys == nullptr ? x : x / 2) * kMergeWarps;
  const int32_t place = first + static_cast<int32_t>(warp);
  MergeSums<kType> s{h, kind, lane};
  if (place < h.kept) s.add(1, h.token(p.kept, place));
  if (first < h.kept) {
    for (int32_t base = 0; base < h.dropped; base += kMergeChunk) {
      const int32_t all = merge_find(h, base, first);
      for (int32_t i = 0; i < all; i += 32) {
        const int32_t at = i + static_cast<int32_t>(lane);
        const uint32_t entry =
            at < all ? dev::load_shared<uint32_t>(kMergeFoundAt + 4 * static_cast<uint32_t>(at))
                     : ~0u;
        const bool mine = entry >> 16 == warp;
        const uint32_t ours = dev::ballot(mine);
        if (ours == 0) continue;  // the same in every lane
        s.add(ours, mine ? h.token(p.dropped, base + static_cast<int32_t>(entry & 0xffff)) : 0);
      }
    }
  }
  if (place < h.kept) {
    s.write(place);
  } else if (place < p.kept.stride && lane == 0 && kind == 1) {
    p.out_mass[h.head * p.kept.stride + place] = 0;
  }
}

}  // namespace tamis
