// y[m,n] = sum_k x[m,k] * w[n,k] + bias[n] for up to 8 tokens.  w: sell4; x, bias, y: bf16 or f16.
// Products and sums of a unit's 16 columns are f16, two chains of eight; its scale and the sum over
// units are f32. x goes to shared memory as f16: as it is where a token's largest lies in
// [1 / 16, 512), for 15 * 512 * 8 is still an f16 and what is lost below 2^-17 is 2^21 times
// smaller than the largest; else read again and scaled by a power of two so that its largest lies
// in [256, 512). Codes minus their zero points are exact. Tile: a lane is a row, or a part of one
// where rows are few, a step of a warp 32 units. A block has a slice, or the blocks of a cluster
// have, and their warps share out the slice's records, the next of each in registers. Lanes of a
// row are added up last. Reduction: warps in shared memory of the cluster's first block, to which
// the others send theirs, always in the same order, so results repeat bit for bit. Needs: cols a
// multiple of 16; launched so that it may begin before the kernel before it ends, weights which
// that kernel did not write. Tail: lanes without a row or unit have scales of 0, so Inf or NaN
// anywhere in x may reach any row. Tokens beyond m are zeros. Instead of tensor cores, which take
// 172 instructions for 1024 weights, kept or not: 44 here for 512 kept ones and a token, 14 for
// each further token, whose x takes 8 wavefronts of shared memory. Tried (H200, gate and up, down,
// q and o, one token): two and three records ahead, 4 to 12 % slower for long rows; all records of
// a warp asked into the L2 cache before x is waited for, which helps warps that have two or three
// (q and o 4.3 to 3.9 us) and costs those with four 1 to 2 us; streams of equal length for all
// lanes of the device, one block an SM, 10.7, 14.0 and 8.0 us where slices take 9.3, 9.1 and 4.7.
// Calculated: dot products of bytes, x in two of them, 38 instructions and as much shared memory,
// but x no longer exact.
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "ops/spmm/sell4_params.h"

namespace tamis {

template <DType kTypeOf, int kTokensOf>
struct Sell4Config {
  static constexpr DType kType = kTypeOf;                       // of x, bias and y
  static constexpr int kTokens = kTokensOf;                     // sums of a lane
  static constexpr int kMostWarps = sell4_most_warps(kTokens);  // of a block, by its registers
  static constexpr uint32_t kXAt = sell4_x_at(kTokens);
  static constexpr uint32_t kHalfBytes = 128 * kTokens;  // of eight units
};

// A lane's part of a record.
struct Sell4Record {
  dev::Word4 codes[2], units;

  TAMIS_DEVICE void load(const uint8_t* record, uint32_t lane) {
    const auto* from = reinterpret_cast<const dev::Word4*>(record) + lane;
    units = dev::load_stream(from + 64);
    codes[0] = dev::load_stream(from);
    codes[1] = dev::load_stream(from + 32);
  }
};

// Codes minus zero points of 16 columns, pair i columns 2i and 2i + 1.
TAMIS_DEVICE void sell4_pairs(uint32_t first, uint32_t second, uint32_t zero,
                              uint32_t (&pairs)[8]) {
  const uint32_t low = zero * 0x00010001u + 0xe400e400u;   // -(1024 + zero)
  const uint32_t high = zero * 0x00100010u + 0xd400d400u;  // -(64 + zero)
  const uint32_t words[4] = {first, first >> 8, second, second >> 8};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] =
        dev::fma_f16x2(dev::and_or(words[i], 0x000f000fu, 0x64006400u), 0x3c003c00u, low);
    pairs[2 * i + 1] =
        dev::fma_f16x2(dev::and_or(words[i], 0x00f000f0u, 0x64006400u), 0x2c002c00u, high);
  }
}

// c += scale * x of one unit's columns * its codes minus zero points.
template <class Config>
TAMIS_DEVICE void multiply_unit(uint32_t first, uint32_t second, uint32_t unit,
                                float (&c)[Config::kTokens]) {
  uint32_t pairs[8];
  sell4_pairs(first, second, unit >> 16 & 15u, pairs);
  const float scale = dev::f16_to_f32(static_cast<uint16_t>(unit));
  // 16 (unit % 8) + 2 kHalfBytes (unit / 8) from 16 unit and 128 (unit / 8).
  const uint32_t at =
      Config::kXAt + (unit >> 16 & 0xfff0u) + (unit >> 16 & 0xff80u) * (2 * Config::kTokens - 1);
#pragma unroll
  for (int t = 0; t < Config::kTokens; ++t) {
    const auto x = dev::load_shared<dev::Word4>(at + 128 * t);
    const auto rest = dev::load_shared<dev::Word4>(at + 128 * t + Config::kHalfBytes);
    uint32_t sum = dev::mul_f16x2(pairs[0], x.x);
    sum = dev::fma_f16x2(pairs[1], x.y, sum);
    sum = dev::fma_f16x2(pairs[2], x.z, sum);
    sum = dev::fma_f16x2(pairs[3], x.w, sum);
    sum = dev::fma_f16x2(pairs[4], rest.x, sum);
    sum = dev::fma_f16x2(pairs[5], rest.y, sum);
    sum = dev::fma_f16x2(pairs[6], rest.z, sum);
    sum = dev::fma_f16x2(pairs[7], rest.w, sum);
    const float both = dev::f16_to_f32(static_cast<uint16_t>(sum)) +
                       dev::f16_to_f32(static_cast<uint16_t>(sum >> 16));
    c[t] = dev::fma(scale, both, c[t]);
  }
}

template <class Config>
TAMIS_DEVICE void multiply_sell4(const Sell4Record& r, float (&c)[Config::kTokens]) {
  multiply_unit<Config>(r.codes[0].x, r.codes[0].y, r.units.x, c);
  multiply_unit<Config>(r.codes[0].z, r.codes[0].w, r.units.y, c);
  multiply_unit<Config>(r.codes[1].x, r.codes[1].y, r.units.z, c);
  multiply_unit<Config>(r.codes[1].z, r.codes[1].w, r.units.w, c);
}

// Exponent of f32 that a token's x is scaled from, 135 for not at all, by the largest of x that the
// warps found: at least 16, so that its powers of two below are normal numbers.
template <DType kType>
TAMIS_DEVICE uint32_t x_exponent(int32_t warps, int32_t token, uint32_t lane) {
  const bool there = lane < static_cast<uint32_t>(warps);
  const uint32_t most =
      dev::warp_max(there ? dev::load_shared<uint32_t>(128 * token + 4 * lane) : 0u);
  const uint32_t exponent = dev::bits_of(widen<kType>(static_cast<uint16_t>(most))) >> 23;
  return exponent < 16 ? 16 : exponent >= 123 && exponent < 135 ? 135 : exponent;
}

// 8 columns of a token, past the L1 cache: the kernel before may have written them.
TAMIS_DEVICE dev::Word4 x_chunk(const SpmmSell4Params& p, int32_t token, uint32_t chunk) {
  const uint16_t* from = p.x + token * p.x_stride + 8 * chunk;
  if (p.x_aligned) return dev::load_volatile(reinterpret_cast<const dev::Word4*>(from));
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    words[i / 2] |= uint32_t{dev::load_volatile(from + i)} << (16 * (i % 2));
  }
  return {words[0], words[1], words[2], words[3]};
}

// x of all tokens to shared memory, as f16 times 2^(135 - x_exponent).
template <class Config>
TAMIS_DEVICE void load_x_sell4(const SpmmSell4Params& p, uint32_t thread) {
  constexpr DType kType = Config::kType;
  const auto threads = static_cast<uint32_t>(32 * p.warps);
  const auto chunks = static_cast<uint32_t>(p.cols / 8);
  const uint32_t warp = thread / 32, lane = thread % 32;
  const auto store = [&](int t, uint32_t chunk, const dev::Word4& x, float factor) {
    const uint32_t unit = chunk / 2;
    const uint32_t at = Config::kXAt + unit / 8 * 2 * Config::kHalfBytes +
                        chunk % 2 * Config::kHalfBytes + 128 * t + unit % 8 * 16;
    const auto scaled = [&](uint32_t pair) {
      return dev::pack_f16(factor * widen_low<kType>(pair), factor * widen_high<kType>(pair));
    };
    dev::store_shared<dev::Word4>(at, {scaled(x.x), scaled(x.y), scaled(x.z), scaled(x.w)});
  };
  uint32_t most[Config::kTokens] = {};
  for (uint32_t chunk = thread; chunk < chunks; chunk += threads) {
    dev::Word4 x[Config::kTokens];  // of all tokens on their way at once
#pragma unroll
    for (int t = 0; t < Config::kTokens; ++t) {
      x[t] = {0, 0, 0, 0};
      if (t < p.m) x[t] = x_chunk(p, t, chunk);
    }
#pragma unroll
    for (int t = 0; t < Config::kTokens; ++t) {
      const auto size = [](uint32_t pair) { return pair & 0x7fff7fffu; };
      most[t] = dev::max_halves(most[t], dev::max_halves(size(x[t].x), size(x[t].y)));
      most[t] = dev::max_halves(most[t], dev::max_halves(size(x[t].z), size(x[t].w)));
      store(t, chunk, x[t], 1.0f);
    }
  }
#pragma unroll
  for (int t = 0; t < Config::kTokens; ++t) {
    const uint32_t low = most[t] & 0xffffu, high = most[t] >> 16;
    const uint32_t all = dev::warp_max(low > high ? low : high);
    if (lane == 0) dev::store_shared<uint32_t>(128 * t + 4 * warp, all);
  }
  dev::sync_block();
  bool again = false;  // the same in every thread
  for (int32_t t = 0; t < p.m; ++t) {
    const uint32_t exponent = x_exponent<kType>(p.warps, t, lane);
    if (exponent == 135) continue;
    const float factor = dev::float_of((262 - exponent) << 23);
    for (uint32_t chunk = thread; chunk < chunks; chunk += threads) {
      store(t, chunk, x_chunk(p, t, chunk), factor);
    }
    again = true;
  }
  if (again) dev::sync_block();
}

// Grid [slices * parts] of 32 * warps, every `parts` of them a cluster.
template <class Config>
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * Config::kMostWarps, 1)
    spmm_sell4(const SpmmSell4Params p) {
  const uint32_t thread = dev::thread_index(), warp = thread / 32, lane = thread % 32;
  const auto block = static_cast<int32_t>(dev::block_index_x());
  const int32_t slice = block / p.parts, part = block % p.parts;
  const int32_t stride = p.warps * p.parts;
  const auto begin = static_cast<int32_t>(dev::load_global(p.offsets + slice));
  const auto end = static_cast<int32_t>(dev::load_global(p.offsets + slice + 1));
  const uint32_t row = dev::load_global(p.row_of + 32 * slice + lane);
  const int32_t first = begin + part * p.warps + static_cast<int32_t>(warp);

  Sell4Record record;  // the next one
  const uint8_t* next = p.records + int64_t{first} * sell4::kRecordBytes;
  if (first < end) record.load(next, lane);
  for (int32_t i = first + stride; p.prefetch && i < end; i += stride) {
    if (lane < sell4::kRecordBytes / 128) {
      dev::prefetch(p.records + i * int64_t{sell4::kRecordBytes} + 128 * lane);
    }
  }

  const uint32_t barrier = static_cast<uint32_t>(p.sums_at) + 128u * Config::kTokens * stride;
  if (p.parts > 1) {  // nobody sends sums before all have met
    if (part == 0 && thread == 0) {
      dev::barrier_init(barrier);
      dev::fence_barrier_init();
      dev::barrier_expect(barrier, 128u * Config::kTokens * (stride - p.warps));
    }
    dev::arrive_cluster_unordered();
  }
  dev::wait_for_previous();
  load_x_sell4<Config>(p, thread);
  dev::allow_next();

  float c[Config::kTokens] = {};
  for (int32_t i = first; i < end; i += stride) {  // the same in every lane
    multiply_sell4<Config>(record, c);
    next += stride * int64_t{sell4::kRecordBytes};
    if (i + stride < end) record.load(next, lane);
  }

  // Cold, and the last that y would wait for: on its way while sums meet.
  const bool writes = part == 0 && warp < static_cast<uint32_t>(p.m) && row != sell4::kNoRow;
  const float bias = writes && p.bias ? widen<Config::kType>(dev::load_global(p.bias + row)) : 0.0f;
  const auto sums_at = static_cast<uint32_t>(p.sums_at);
  if (sums_at == Config::kXAt) dev::sync_block();  // nobody reads x any more
  if (p.parts > 1) dev::wait_cluster();
  const uint32_t mine = static_cast<uint32_t>(part * p.warps) + warp;
#pragma unroll
  for (int t = 0; t < Config::kTokens; ++t) {
    const uint32_t at = sums_at + 128 * (mine * Config::kTokens + t) + 4 * lane;
    if (part == 0) {
      dev::store_shared<float>(at, c[t]);
    } else {
      dev::send_cluster(0, at, dev::bits_of(c[t]), barrier);
    }
  }
  if (part != 0) return;
  dev::sync_block();
  if (p.parts > 1) dev::barrier_wait(barrier, 0);
  for (auto t = static_cast<int32_t>(warp); t < p.m; t += p.warps) {
    const uint32_t exponent = x_exponent<Config::kType>(p.warps, t, lane);
    float sum = 0;
    for (int32_t first = 0; first < stride; first += 8) {  // loads of eight warps' on their way
      float v[8];
#pragma unroll
      for (int32_t w = 0; w < 8; ++w) {
        const auto at = static_cast<uint32_t>((first + w) * Config::kTokens + t);
        v[w] = first + w < stride ? dev::load_shared<float>(sums_at + 128 * at + 4 * lane) : 0.0f;
      }
      sum += ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
    }
    if (p.row_lanes > 1) {  // 2 or 4
      sum += dev::shuffle_xor(sum, 1);
      if (p.row_lanes == 4) sum += dev::shuffle_xor(sum, 2);
      if (lane % static_cast<uint32_t>(p.row_lanes) != 0) continue;
    }
    if (!writes) continue;
    p.y[t * p.y_stride + row] =
        narrow<Config::kType>(dev::fma(sum, dev::float_of((exponent - 8) << 23), bias));
  }
}

// Warps of a block that writes a slice densely.
inline constexpr uint32_t kSell4ExpandWarps = 8;

// Writes the units of sell4 into zeros. Grid [slices].
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * kSell4ExpandWarps, 4)
    expand_sell4(const ExpandSell4Params p) {
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const uint32_t slice = dev::block_index_x(), end = dev::load_global(p.offsets + slice + 1);
  const uint32_t row = dev::load_global(p.row_of + 32 * slice + lane);
  for (uint32_t i = dev::load_global(p.offsets + slice) + warp; i < end; i += kSell4ExpandWarps) {
    Sell4Record r;
    r.load(p.records + i * sell4::kRecordBytes, lane);
    const uint32_t units[4] = {r.units.x, r.units.y, r.units.z, r.units.w};
    const uint32_t codes[4][2] = {{r.codes[0].x, r.codes[0].y},
                                  {r.codes[0].z, r.codes[0].w},
                                  {r.codes[1].x, r.codes[1].y},
                                  {r.codes[1].z, r.codes[1].w}};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const auto bits = static_cast<uint16_t>(units[step]);
      if (bits == 0) continue;  // no unit, or zeros
      const float scale = dev::f16_to_f32(bits);
      uint32_t pairs[8];
      sell4_pairs(codes[step][0], codes[step][1], units[step] >> 16 & 15u, pairs);
#pragma unroll
      for (uint32_t& pair : pairs) {
        const float low = scale * dev::f16_to_f32(static_cast<uint16_t>(pair));
        const float high = scale * dev::f16_to_f32(static_cast<uint16_t>(pair >> 16));
        pair = p.dtype == DType::f16 ? dev::pack_f16(low, high) : dev::pack_bf16(low, high);
      }
      uint16_t* out = p.out + row * p.out_stride + 16 * (units[step] >> 20);
      if (p.out_aligned) {
        auto* wide = reinterpret_cast<dev::Word4*>(out);
        wide[0] = {pairs[0], pairs[1], pairs[2], pairs[3]};
        wide[1] = {pairs[4], pairs[5], pairs[6], pairs[7]};
      } else {
#pragma unroll
        for (int j = 0; j < 16; ++j) out[j] = static_cast<uint16_t>(pairs[j / 2] >> (16 * (j % 2)));
      }
    }
  }
}

}  // namespace tamis
