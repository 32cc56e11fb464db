// AMX and conversions to bf16 in plain C++, under the names of the intrinsics, so that kernels of
// the level amx are compiled for and tested on hosts without either. Forced into their sources.
// After Intel's Software Developer's Manual: tdpbf16ps multiplies pairs in order, takes denormals
// as zero and flushes denormal sums; tdpbssd adds up four products of signed bytes; conversions
// round to nearest even and flush denormals.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace tamis::test {

struct SimulatedTiles {
  int64_t row_bytes[8] = {}, rows[8] = {};  // 0 without a configuration: nothing is then computed
  alignas(64) uint8_t data[8][16][64] = {};
};
inline thread_local SimulatedTiles tiles;

inline void load_config(const void* config) {
  const auto* bytes = static_cast<const uint8_t*>(config);
  for (int i = 0; i < 8; ++i) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * i, 2);
    tiles.row_bytes[i] = row_bytes;
    tiles.rows[i] = bytes[48 + i];
  }
}
inline void zero_tile(int t) {
  std::memset(tiles.data[t], 0, sizeof tiles.data[t]);
}
inline void load_tile(int t, const void* from, int64_t stride) {
  zero_tile(t);
  for (int64_t r = 0; r < tiles.rows[t]; ++r) {
    std::memcpy(tiles.data[t][r], static_cast<const uint8_t*>(from) + r * stride,
                static_cast<size_t>(tiles.row_bytes[t]));
  }
}
inline void store_tile(int t, void* to, int64_t stride) {
  for (int64_t r = 0; r < tiles.rows[t]; ++r) {
    std::memcpy(static_cast<uint8_t*>(to) + r * stride, tiles.data[t][r],
                static_cast<size_t>(tiles.row_bytes[t]));
  }
}

inline float flushed(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}
inline float widened(uint16_t x) {
  return flushed(std::bit_cast<float>(static_cast<uint32_t>(x) << 16));
}
inline void multiply_tiles(int c, int a, int b) {
  for (int64_t m = 0; m < tiles.rows[c]; ++m) {
    for (int64_t n = 0; n < tiles.row_bytes[c] / 4; ++n) {
      float sum;
      std::memcpy(&sum, tiles.data[c][m] + 4 * n, 4);
      for (int64_t k = 0; k < tiles.row_bytes[a] / 4; ++k) {
        uint16_t x[2], y[2];
        std::memcpy(x, tiles.data[a][m] + 4 * k, 4);
        std::memcpy(y, tiles.data[b][k] + 4 * n, 4);
        sum = flushed(std::fma(widened(x[0]), widened(y[0]), sum));
        sum = flushed(std::fma(widened(x[1]), widened(y[1]), sum));
      }
      std::memcpy(tiles.data[c][m] + 4 * n, &sum, 4);
    }
  }
}

inline void multiply_bytes(int c, int a, int b) {
  for (int64_t m = 0; m < tiles.rows[c]; ++m) {
    for (int64_t n = 0; n < tiles.row_bytes[c] / 4; ++n) {
      uint32_t sum;
      std::memcpy(&sum, tiles.data[c][m] + 4 * n, 4);
      for (int64_t k = 0; k < tiles.row_bytes[a]; ++k) {
        const int x = static_cast<int8_t>(tiles.data[a][m][k]);
        const int y = static_cast<int8_t>(tiles.data[b][k / 4][4 * n + k % 4]);
        sum += static_cast<uint32_t>(x * y);
      }
      std::memcpy(tiles.data[c][m] + 4 * n, &sum, 4);
    }
  }
}

inline uint16_t narrowed(float x) {
  const auto bits = std::bit_cast<uint32_t>(flushed(x));
  if (std::isnan(x)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline __m256bh narrow(__m512 x) {
  float from[16];
  uint16_t to[16];
  _mm512_storeu_ps(from, x);
  for (int i = 0; i < 16; ++i) to[i] = narrowed(from[i]);
  return std::bit_cast<__m256bh>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(to)));
}
inline __m512bh narrow(__m512 high, __m512 low) {
  const __m512i wide = _mm512_castsi256_si512(std::bit_cast<__m256i>(narrow(low)));
  return std::bit_cast<__m512bh>(_mm512_inserti64x4(wide, std::bit_cast<__m256i>(narrow(high)), 1));
}

}  // namespace tamis::test

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig(config) ::tamis::test::load_config(config)
#define _tile_release() (::tamis::test::tiles = {})
#define _tile_zero(t) ::tamis::test::zero_tile(t)
#define _tile_loadd(t, from, stride) ::tamis::test::load_tile(t, from, stride)
#define _tile_stream_loadd(t, from, stride) ::tamis::test::load_tile(t, from, stride)
#define _tile_stored(t, to, stride) ::tamis::test::store_tile(t, to, stride)
#define _tile_dpbf16ps(c, a, b) ::tamis::test::multiply_tiles(c, a, b)
#define _tile_dpbssd(c, a, b) ::tamis::test::multiply_bytes(c, a, b)
#define _mm512_cvtneps_pbh(x) ::tamis::test::narrow(x)
#define _mm512_cvtne2ps_pbh(high, low) ::tamis::test::narrow(high, low)
