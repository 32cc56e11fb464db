// Where a block of kv_estimate works, and its q in shared memory: bytes with two factors a row for
// labels, the type's own 16 bits for products of rows and bounds, f32 for the others.
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "ops/kv_select/estimate_params.h"

namespace tamis {

inline constexpr float kEstimateNever = -__builtin_inff();

struct EstimatePlace {
  int32_t head, batch, kv_head;
  int32_t first, last;  // units of this block that count
  uint32_t thread, warp, lane;

  TAMIS_DEVICE explicit EstimatePlace(const EstimateParams& p) {
    const KvEstimateArgs& a = p.args;
    head = static_cast<int32_t>(dev::block_index_y());
    batch = head / static_cast<int32_t>(a.kv_heads);
    kv_head = head % static_cast<int32_t>(a.kv_heads);
    thread = dev::thread_index();
    warp = thread / 32;
    lane = thread % 32;
    first = static_cast<int32_t>(dev::block_index_x()) * p.span;
    const auto units = static_cast<int32_t>(a.units.units);
    last = first + p.span < units ? first + p.span : units;
  }
};

TAMIS_DEVICE int32_t estimate_begin(const EstimateParams& p, int32_t head) {
  if (p.args.begin == nullptr) return 0;
  const int32_t begin = dev::load_global(p.args.begin + head);
  const auto units = static_cast<int32_t>(p.args.units.units);
  return begin < 0 ? 0 : begin < units ? begin : units;
}

// Where things lie in shared memory: bytes from its start.
struct EstimateShared {
  uint32_t q, steps, parts;

  TAMIS_DEVICE explicit EstimateShared(const EstimateParams& p) {
    const auto rows = static_cast<uint32_t>(p.args.rows), width = static_cast<uint32_t>(p.width);
    q = static_cast<uint32_t>(p.shared_at);
    steps = q + 4 * rows * width;
    parts = steps + 8 * rows;
  }
};

// q of labels: bytes [rows, r], a step (scale included) and step * sum of bytes a row. A warp a
// row, a lane kHeld channels.
template <int kHeld>
TAMIS_DEVICE void load_query(const EstimateParams& p, const EstimatePlace& at, float (&x)[kHeld]) {
  const KvEstimateArgs& a = p.args;
  const auto row = static_cast<int32_t>(at.warp), lane = static_cast<int32_t>(at.lane);
  const int32_t r = a.units.labels.channels;
  const int32_t* ids = a.units.channels + at.kv_head * r;
  const int64_t from = (int64_t{at.head} * a.rows + row) * a.head_dim;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int32_t c = lane + 32 * i;
    x[i] = 0;
    if (row < a.rows && c < r) {
      x[i] = load_float(a.q_dtype, a.q, from + dev::load_global(ids + c));
    }
  }
}
template <int kHeld>
TAMIS_DEVICE float largest_of_query(const float (&x)[kHeld]) {
  float most = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) most = dev::max(most, x[i] < 0 ? -x[i] : x[i]);
  return dev::float_of(dev::warp_max(dev::bits_of(most)));
}
template <int kHeld>
TAMIS_DEVICE void round_query(const EstimateParams& p, const EstimatePlace& at,
                              const float (&x)[kHeld], float most) {
  const KvEstimateArgs& a = p.args;
  const EstimateShared in(p);
  const auto row = static_cast<int32_t>(at.warp), lane = static_cast<int32_t>(at.lane);
  if (row >= a.rows) return;
  const int32_t r = a.units.labels.channels;
  const float inverse = most > 0 ? dev::divide(127.0f, most) : 0.0f;
  float sum = 0;  // of whole numbers below 2^24
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int32_t c = lane + 32 * i, code = dev::round_to_int(dev::mul(x[i], inverse));
    if (c >= r) continue;
    dev::store_shared<int8_t>(
        in.q + 4 * static_cast<uint32_t>(row * p.width) + static_cast<uint32_t>(c),
        static_cast<int8_t>(code));
    sum += static_cast<float>(code);
  }
  for (int mask = 16; mask > 0; mask /= 2) sum += dev::shuffle_xor(sum, mask);
  if (at.lane == 0) {
    const float step = dev::mul(dev::divide(most, 127.0f), a.scale);
    const uint32_t to = in.steps + 8 * static_cast<uint32_t>(row);
    dev::store_shared<float>(to, step);
    dev::store_shared<float>(to + 4, dev::mul(step, sum));
  }
}
template <int kThreads, int kHeld = kLabelMaxChannels / 32>
TAMIS_DEVICE void round_queries(const EstimateParams& p, const EstimatePlace& at) {
  static_assert(kEstimateRows <= kThreads / 32, "a warp a row");
  float x[kHeld];
  load_query(p, at, x);
  round_query(p, at, x, largest_of_query(x));
}

// Bytes of a row of q for products: quarter warps read two rows, in other banks.
TAMIS_DEVICE uint32_t product_pitch(const EstimateParams& p) {
  return 2 * static_cast<uint32_t>(p.width) | 64u;
}

// q as it is, 16 bits; of bounds the negative channels, then the positive ones, zeros elsewhere.
TAMIS_DEVICE void split_queries(const EstimateParams& p, const EstimatePlace& at) {
  const KvEstimateArgs& a = p.args;
  const EstimateShared in(p);
  const auto d = static_cast<int32_t>(a.head_dim);
  for (auto i = static_cast<int32_t>(at.thread); i < a.rows * d; i += kEstimateThreads) {
    const int64_t from = int64_t{at.head} * a.rows * d + i;
    const uint16_t bits = dev::load_global(static_cast<const uint16_t*>(a.q) + from);
    const uint32_t to =
        in.q + static_cast<uint32_t>(i / d) * product_pitch(p) + 2 * static_cast<uint32_t>(i % d);
    if (a.units.kind == KvSummary::bounds) {
      const float x = widen(a.q_dtype, bits);
      dev::store_shared<uint16_t>(to, x < 0 ? bits : uint16_t{0});
      dev::store_shared<uint16_t>(to + 2 * static_cast<uint32_t>(d), x > 0 ? bits : uint16_t{0});
    } else {
      dev::store_shared<uint16_t>(to, bits);
    }
  }
}

template <int kThreads>
TAMIS_DEVICE void widen_queries(const EstimateParams& p, const EstimatePlace& at) {
  const KvEstimateArgs& a = p.args;
  const EstimateShared in(p);
  const auto d = static_cast<int32_t>(a.head_dim);
  for (auto i = static_cast<int32_t>(at.thread); i < a.rows * d; i += kThreads) {
    const float x = load_float(a.q_dtype, a.q, int64_t{at.head} * a.rows * d + i);
    const uint32_t to = in.q + 4 * static_cast<uint32_t>(i / d * p.width + i % d);
    if (a.units.kind == KvSummary::bounds) {
      dev::store_shared<float>(to, x < 0 ? x : 0.0f);
      dev::store_shared<float>(to + 4 * static_cast<uint32_t>(d), x > 0 ? x : 0.0f);
    } else {
      dev::store_shared<float>(to, x);
    }
  }
}

}  // namespace tamis
