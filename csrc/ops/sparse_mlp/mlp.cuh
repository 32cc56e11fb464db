// sparse_mlp of several tokens in three kernels, each of which reads one matrix. gate: dot products
// of all neurons with x, activations, and for each block the list of those that count. up: dot
// products of the listed neurons, cut into equal shares whatever block listed them, times their
// activations. down: the sum of the listed rows (sparse_input/row_sum.cuh). Tile of dot products:
// 16 rows; the warps of a block share the inputs, 64 at a time and a warp, as operands of tensor
// cores straight from memory: a lane's 16 bytes are eight inputs of a row, which both operands
// number alike. Up to 8 tokens cost what one does. Four steps of a warp are on their way; those of
// the next tile are when one ends. Sums are f32 and added in one order. Factors of down are 16-bit
// floats twice, the value and what rounding left of it, so they are nearly f32. Needs: k a multiple
// of 8, rows on multiples of 16 bytes.   Tail: inputs past k are not read. After: Lee et al. 2024
// (CATS), whose kernel adds with atomics and waits for the host's count.
#pragma once

#include "ops/sparse_input/row_sum.cuh"
#include "ops/sparse_mlp/mlp_params.h"

namespace tamis {

// First of a block's neurons or ranks: shares differ by at most one.
TAMIS_DEVICE int32_t share_begin(int32_t block, int32_t count, int32_t blocks) {
  return static_cast<int32_t>(int64_t{block} * count / blocks);
}

TAMIS_DEVICE float mlp_sigmoid(float v) {
  const float e = dev::exp2(-1.4426950408889634f * (v < 0 ? -v : v));
  return dev::divide(v < 0 ? e : 1.0f, 1.0f + e);
}

// As ops/spmm/activate-inl.h.
TAMIS_DEVICE float mlp_activate(Activation f, float v) {
  switch (f) {
    case Activation::none:
      return v;
    case Activation::relu:
      return v < 0 ? 0.0f : v;
    case Activation::gelu: {  // Abramowitz and Stegun 7.1.26
      const float z = 0.70710678f * (v < 0 ? -v : v);
      const float t = dev::divide(1.0f, dev::fma(0.3275911f, z, 1.0f));
      float p = dev::fma(1.061405429f, t, -1.453152027f);
      p = dev::fma(p, t, 1.421413741f);
      p = dev::fma(p, t, -0.284496736f);
      p = dev::fma(p, t, 0.254829592f);
      const float tail = 0.5f * p * t * dev::exp2(-1.4426950408889634f * z * z);
      return v * (v < 0 ? tail : 1.0f - tail);
    }
    case Activation::gelu_tanh:  // 0.5 v (1 + tanh u) = v sigmoid(2u)
      return v * mlp_sigmoid(2 * 0.79788456f * dev::fma(v * v * 0.044715f, v, v));
    case Activation::silu:
      return v * mlp_sigmoid(v);
  }
  return v;
}

// Tokens [0, m) of x into shared memory, rows filled up with zeros.
TAMIS_DEVICE void load_tokens(const MlpParams& p, uint32_t at) {
  const uint32_t thread = dev::thread_index();
  const auto chunks = static_cast<uint32_t>(p.steps) * (kDotStep / 8);
  const auto whole = static_cast<uint32_t>(p.k) / 8;
  for (int32_t t = 0; t < p.m; ++t) {
    const uint16_t* x = p.x + t * p.x_stride;
    const uint32_t to = at + static_cast<uint32_t>(t) * p.x_pitch_bytes;
    for (uint32_t c = thread; c < chunks; c += kDotThreads) {
      if (p.x_aligned) {
        dev::copy_async16(to + 16 * c, c < whole ? x + 8 * c : x, c < whole ? 16 : 0);
      } else {
#pragma unroll
        for (uint32_t i = 0; i < 8; ++i) {
          const uint16_t value = c < whole ? dev::load_volatile(x + 8 * c + i) : uint16_t{0};
          dev::store_shared<uint16_t>(to + 16 * c + 2 * i, value);
        }
      }
    }
  }
  dev::commit_async();
}

// 64 inputs of the lane's two rows, group and group + 8: chunks t and t + 4 of 8.
struct DotStep {
  dev::Word4 low[2], high[2];
};

// Where a warp reads: tiles of 16 rows one after the other, its share of the inputs of each.
template <class Rows>
struct DotCursor {
  const uint16_t* w;
  const Rows& rows;
  int32_t k, rounds, tile, round = 0;
  const uint16_t *low = nullptr, *high = nullptr;  // null: no such row

  TAMIS_DEVICE DotCursor(const uint16_t* weights, const MlpParams& p, const Rows& list)
      : w(weights), rows(list), k(p.k), rounds(rounds_of(p)), tile(0) {
    find();
  }
  // Steps of a tile, filled up to whole turns of the stages.
  static TAMIS_DEVICE int32_t rounds_of(const MlpParams& p) {
    return (p.steps + kDotStages - 1) / kDotStages * kDotStages;
  }
  TAMIS_DEVICE void find() {
    const auto row = kDotRows * tile + static_cast<int32_t>(dev::thread_index() % 32 / 4);
    low = row < rows.count ? w + int64_t{rows.id(row)} * k : nullptr;
    high = row + 8 < rows.count ? w + int64_t{rows.id(row + 8)} * k : nullptr;
  }
  TAMIS_DEVICE void request(DotStep& s) {
    const auto thread = static_cast<int32_t>(dev::thread_index());
    const int32_t first = kDotStep * round + 64 * (thread / 32) + 8 * (thread % 4);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t at = first + 32 * i;
      s.low[i] = s.high[i] = {0, 0, 0, 0};
      if (low != nullptr && at < k) {
        s.low[i] = dev::load_stream(reinterpret_cast<const dev::Word4*>(low + at));
      }
      if (high != nullptr && at < k) {
        s.high[i] = dev::load_stream(reinterpret_cast<const dev::Word4*>(high + at));
      }
    }
    if (++round == rounds) {
      round = 0;
      ++tile;
      find();
    }
  }
};

// Dot products of all tokens with the rows of a list, `x_at` in shared memory. `emit(row, half,
// sums)` gets, from warp 0 in ascending tiles, rows 16 tile + lane / 2 and tokens 4 * (lane % 2)
// on.
template <DType kType, class Rows, class Emit>
TAMIS_DEVICE void dot_rows(const MlpParams& p, const uint16_t* w, uint32_t x_at, const Rows& rows,
                           const Emit& emit) {
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const uint32_t group = lane / 4, t = lane % 4;
  DotCursor<Rows> cursor(w, p, rows);
  DotStep stage[kDotStages];
#pragma unroll
  for (int i = 0; i < kDotStages; ++i) cursor.request(stage[i]);
  dev::wait_async<0>();
  dev::sync_block();  // x is there
  const auto m = static_cast<uint32_t>(p.m);
  const uint32_t x = x_at + (group < m ? group : m - 1) * p.x_pitch_bytes + 128 * warp + 16 * t;
  const int32_t tiles = (rows.count + kDotRows - 1) / kDotRows;
  for (int32_t tile = 0; tile < tiles; ++tile) {
    float c[4] = {};
    for (int32_t round = 0; round < cursor.rounds; round += kDotStages) {
#pragma unroll
      for (int i = 0; i < kDotStages; ++i) {
        if (round + i < p.steps) {  // the same in every lane
          const uint32_t from = x + 2 * kDotStep * static_cast<uint32_t>(round + i);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const auto b = dev::load_shared<dev::Word4>(from + 64 * j);
            const dev::Word4 &low = stage[i].low[j], &high = stage[i].high[j];
            const uint32_t first[4] = {low.x, high.x, low.y, high.y};
            multiply<kType>(c, first, b.x, b.y);
            const uint32_t second[4] = {low.z, high.z, low.w, high.w};
            multiply<kType>(c, second, b.z, b.w);
          }
        }
        cursor.request(stage[i]);
      }
    }
    // Sums of two tiles take turns, so that one barrier a tile is enough.
    const uint32_t sums = kDotSumsAt + static_cast<uint32_t>(tile % 2) * (kDotListAt / 2);
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      dev::store_shared<dev::Word2>(
          sums + 4 * ((warp * kDotRows + group + 8 * half) * kCudaTokens + 2 * t),
          {dev::bits_of(c[2 * half]), dev::bits_of(c[2 * half + 1])});
    }
    dev::sync_block();
    if (warp == 0) {
      float sum[4] = {};
#pragma unroll
      for (uint32_t other = 0; other < kDotWarps; ++other) {
        const auto part =
            dev::load_shared<dev::Word4>(sums + other * kDotRows * kCudaTokens * 4 + 16 * lane);
        sum[0] += dev::float_of(part.x);
        sum[1] += dev::float_of(part.y);
        sum[2] += dev::float_of(part.z);
        sum[3] += dev::float_of(part.w);
      }
      emit(kDotRows * tile + static_cast<int32_t>(lane / 2), sum);
    }
  }
}

struct GateRows {
  int32_t begin, count;
  TAMIS_DEVICE int32_t id(int32_t i) const { return begin + i; }
};

// Grid [blocks] of kDotThreads.
template <DType kType>
TAMIS_DEVICE void mlp_gate(const MlpParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  load_tokens(p, p.gate_x_at);
  const auto block = static_cast<int32_t>(dev::block_index_x());
  const uint32_t lane = dev::thread_index() % 32;
  const int32_t begin = share_begin(block, p.n, p.blocks);
  const GateRows rows{begin, share_begin(block + 1, p.n, p.blocks) - begin};
  int32_t found = 0;  // of warp 0
  dot_rows<kType>(p, p.gate, p.gate_x_at, rows, [&](int32_t row, const float (&sum)[4]) {
    const bool exists = row < rows.count;
    const float bound = exists ? dev::load_volatile(p.threshold + begin + row) : 0.0f;
    float factor[4];
    bool mine = false;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float a = mlp_activate(p.activation, sum[i]);
      const bool counts = exists && 4 * static_cast<int32_t>(lane % 2) + i < p.m &&
                          !((a < 0 ? -a : a) < bound);  // a NaN counts
      factor[i] = counts ? a : 0.0f;
      mine = mine || counts;
    }
    const uint32_t bits = dev::ballot(mine);
    const uint32_t kept = (bits | bits >> 1) & 0x55555555u;  // bit 2 r: row r
    const uint32_t below = (uint32_t{1} << (lane & ~1u)) - 1;
    if ((kept >> (lane & ~1u) & 1) != 0) {
      const int64_t to = begin + found + dev::popcount(kept & below);
      if (lane % 2 == 0) p.ids[to] = begin + row;
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        p.activations[to * kCudaTokens + 4 * (lane % 2) + i] = factor[i];
      }
    }
    found += dev::popcount(kept);
  });
  if (dev::thread_index() == 0) p.counts[block] = found;
}

// The block's share of the list: neurons in shared memory, beside where the gate left them.
struct UpRows {
  uint32_t list;
  int32_t count;
  TAMIS_DEVICE int32_t id(int32_t i) const {
    return dev::load_shared<int32_t>(list + 8 * static_cast<uint32_t>(i));
  }
  TAMIS_DEVICE int32_t place(int32_t i) const {
    return dev::load_shared<int32_t>(list + 8 * static_cast<uint32_t>(i) + 4);
  }
};

// Starts of the gate's blocks in the list of all; returns how many are listed.
TAMIS_DEVICE int32_t add_counts(const MlpParams& p) {
  const uint32_t thread = dev::thread_index(), lane = thread % 32;
  const auto blocks = static_cast<uint32_t>(p.blocks);
  for (uint32_t b = thread; b < blocks; b += kDotThreads) {
    dev::store_shared<int32_t>(kDotListAt + 4 * (b + 1), dev::load_volatile(p.counts + b));
  }
  dev::sync_block();
  if (thread < 32) {
    uint32_t before = 0;
    if (lane == 0) dev::store_shared<uint32_t>(kDotListAt, 0);
    for (uint32_t first = 0; first < blocks; first += 32) {
      const uint32_t at = kDotListAt + 4 * (first + lane + 1);
      uint32_t sum = first + lane < blocks ? dev::load_shared<uint32_t>(at) : 0;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) sum = dev::prefix_step(sum, distance);
      if (first + lane < blocks) dev::store_shared<uint32_t>(at, before + sum);
      before += static_cast<uint32_t>(dev::shuffle(static_cast<int32_t>(sum), 31));
    }
  }
  dev::sync_block();
  return dev::load_shared<int32_t>(kDotListAt + 4 * blocks);
}

// The gate's block that listed this rank.
TAMIS_DEVICE int32_t block_of(const MlpParams& p, int32_t rank) {
  int32_t low = 0, high = p.blocks;  // start of low <= rank < start of high
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    const auto start = dev::load_shared<int32_t>(kDotListAt + 4 * static_cast<uint32_t>(middle));
    (start <= rank ? low : high) = middle;
  }
  return low;
}

// A factor as two 16-bit floats, the second of what the first one's rounding left.
template <DType kType>
TAMIS_DEVICE void store_factor(const MlpParams& p, int32_t rank, uint32_t token, float z) {
  constexpr uint32_t kInfinite = kType == DType::bf16 ? 0x7f80 : 0x7c00;
  uint16_t* to = p.factors + (int64_t{rank / 2} * kCudaTokens + token) * 4 + rank % 2;
  const uint16_t high = narrow<kType>(z);
  const bool finite = (high & kInfinite) != kInfinite;
  to[0] = high;
  to[2] = finite ? narrow<kType>(z - widen<kType>(high)) : uint16_t{0};
}

// Grid [blocks] of kDotThreads.
template <DType kType>
TAMIS_DEVICE void mlp_up(const MlpParams& p) {
  load_tokens(p, p.up_x_at);  // older than the gate's kernel, which waited for it
  dev::wait_for_previous();
  dev::allow_next();
  const auto block = static_cast<int32_t>(dev::block_index_x());
  const uint32_t thread = dev::thread_index(), lane = thread % 32;
  const int32_t total = add_counts(p);
  const int32_t begin = share_begin(block, total, p.blocks);
  const int32_t end = share_begin(block + 1, total, p.blocks);
  const auto list = kDotListAt + 4 * (static_cast<uint32_t>(p.blocks) / 2 * 2 + 2);
  for (int32_t i = static_cast<int32_t>(thread); i < end - begin; i += kDotThreads) {
    const int32_t of = block_of(p, begin + i);
    const auto start = dev::load_shared<int32_t>(kDotListAt + 4 * static_cast<uint32_t>(of));
    const int32_t place = share_begin(of, p.n, p.blocks) + begin + i - start;
    const int32_t id = dev::load_volatile(p.ids + place);
    dev::store_shared<dev::Word2>(list + 8 * static_cast<uint32_t>(i),
                                  {static_cast<uint32_t>(id), static_cast<uint32_t>(place)});
    p.listed[begin + i] = id;
  }
  dev::sync_block();
  const UpRows rows{list, end - begin};
  dot_rows<kType>(p, p.up, p.up_x_at, rows, [&](int32_t row, const float (&sum)[4]) {
    if (row >= rows.count) return;
    const int64_t from = int64_t{rows.place(row)} * kCudaTokens;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t token = 4 * (lane % 2) + i;
      const float a = dev::load_volatile(p.activations + from + token);
      store_factor<kType>(p, begin + row, token, a == 0 ? 0.0f : a * sum[i]);
    }
  });
  if (block + 1 < p.blocks) return;
  if (thread == 0) *p.total = total;
  const int32_t padded = (total + kRowSumStep - 1) / kRowSumStep * kRowSumStep;
  if (static_cast<int32_t>(thread) < padded - total) {  // ranks of the last step that are none
    for (uint32_t t = 0; t < kCudaTokens; ++t) {
      store_factor<kType>(p, total + static_cast<int32_t>(thread), t, 0.0f);
    }
  }
}

// The list of all that count, in memory.
struct GlobalList {
  static constexpr int kWords = 2;
  static constexpr bool kAhead = true;
  const int32_t* ids;
  const dev::Word2* pairs;  // [pair, token]: both values, both rests
  int32_t count;

  TAMIS_DEVICE RowIds rows(int32_t step, int32_t end, uint32_t lane) const {
    RowIds out;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t at =
          kRowSumStep * step + 2 * static_cast<int32_t>(lane % 4) + i % 2 + i / 2 * 8;
      out.id[i] = -1;
      if (step < end && at < count) out.id[i] = dev::load_volatile(ids + at);
    }
    return out;
  }
  TAMIS_DEVICE void factors(int32_t step, uint32_t lane, uint32_t (&out)[2][2]) const {
    const int64_t pair = kRowSumStep / 2 * int64_t{step} + lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const dev::Word2 both =
          dev::load_volatile(pairs + (pair + 4 * half) * kCudaTokens + lane / 4);
      out[0][half] = both.x;
      out[1][half] = both.y;
    }
  }
};

struct DownParams {
  RowSumParams sum;
  const int32_t *total, *listed;
  const uint16_t* factors;
};

// Grid [tiles of columns, splits] of kRowSumThreads.
template <DType kType>
TAMIS_DEVICE void mlp_down(const DownParams& p) {
  dev::wait_for_previous();
  dev::allow_next();
  const int32_t count = dev::load_volatile(p.total);
  const GlobalList list{p.listed, reinterpret_cast<const dev::Word2*>(p.factors), count};
  const int32_t steps = (count + kRowSumStep - 1) / kRowSumStep;
  const auto split = static_cast<int32_t>(dev::block_index_y());
  RowSums sums;
  sum_rows<kType>(p.sum, list, share_begin(split, steps, p.sum.splits),
                  share_begin(split + 1, steps, p.sum.splits), sums);
  finish_row_sums<kType>(p.sum, sums);
}

}  // namespace tamis
