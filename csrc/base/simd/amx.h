// AMX: eight registers of 16 rows by 64 bytes, and products of two of them into a third.
//
// | what                  | Emerald Rapids, cycles          |
// | --------------------- | ------------------------------- |
// | tdpbf16ps, tdpbssd    | 16 each, into one another's sum 52 |
// | tileloadd             | 8 from L1, hidden from L2       |
//
// GCC's intrinsics are assembly that names registers and says nothing of memory: register numbers
// are literals, and tiles_fence() stands between stores to memory and the loads of tiles from it.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "base/simd/element.h"

namespace tamis {
namespace {

inline constexpr int kTileRows = 16;
inline constexpr int64_t kTileRowBytes = 64, kTileBytes = kTileRows * kTileRowBytes;

// All eight registers at their full size, for as long as it lives, for this thread. Right-hand
// tiles, 6 and 7, and sums, 0 to 3, of fewer than 16 columns have shorter rows.
struct TileRegisters {
  TAMIS_INLINE explicit TileRegisters(int64_t right_row_bytes = kTileRowBytes) {
    struct alignas(64) Config {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      const bool left = i == 4 || i == 5;
      config.row_bytes[i] = static_cast<uint16_t>(left ? kTileRowBytes : right_row_bytes);
      config.rows[i] = kTileRows;
    }
    __asm__ volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
  TAMIS_INLINE ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

TAMIS_INLINE void tiles_fence() {
  __asm__ volatile("" ::: "memory");
}

}  // namespace
}  // namespace tamis
