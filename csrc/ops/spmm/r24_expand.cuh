// What is common to what reads r24: a record to a dense tile in shared memory, and weights written
// out on the device, for prompts.
#pragma once

#include "base/cuda/dev.h"
#include "ops/spmm/r24_params.h"

namespace tamis {

// A lane's part of a record: codes and values of its eight fours.
struct R24Lane {
  uint32_t codes;
  dev::Word4 values[2];
};

// r24::byte_of there.
TAMIS_DEVICE uint32_t r24_byte(uint32_t row, uint32_t col) {
  return 128 * row + 16 * (col / 8 ^ row % 8) + 2 * (col % 8);
}

// Four bytes, of which byte_pick selects.
TAMIS_DEVICE uint32_t r24_bytes(uint32_t a, uint32_t b, uint32_t c = 0, uint32_t d = 0) {
  return a | b << 8 | c << 16 | d << 24;
}

// Eight columns: the fours of two pairs of values, whose two words each are picked by a half of
// `low` and of `high`.
TAMIS_DEVICE dev::Word4 r24_columns(uint32_t first, uint32_t second, uint32_t low, uint32_t high) {
  return {dev::byte_pick(first, 0, low), dev::byte_pick(first, 0, high),
          dev::byte_pick(second, 0, low >> 16), dev::byte_pick(second, 0, high >> 16)};
}

// A lane's 32 columns, eight of a row each. Columns of a four are its first value, its second or
// zero, as a table of its pairs says: which two bytes of the values, for four fours at a time.
struct R24Columns {
  dev::Word4 rows[4];

  TAMIS_DEVICE explicit R24Columns(const R24Lane& of) {
    constexpr uint32_t kFirst = 0x10, kSecond = 0x32, kZero = 0x44;  // digits of byte_pick
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t codes = half == 0 ? of.codes : of.codes >> 16;
      const uint32_t column0 =
          dev::byte_pick(r24_bytes(kFirst, kFirst, kFirst, kZero), r24_bytes(kZero, kZero), codes);
      const uint32_t column1 =
          dev::byte_pick(r24_bytes(kSecond, kZero, kZero, kFirst), r24_bytes(kFirst, kZero), codes);
      const uint32_t column2 = dev::byte_pick(r24_bytes(kZero, kSecond, kZero, kSecond),
                                              r24_bytes(kZero, kFirst), codes);
      const uint32_t column3 = dev::byte_pick(r24_bytes(kZero, kZero, kSecond, kZero),
                                              r24_bytes(kSecond, kSecond), codes);
      const dev::Word4& v = of.values[half];
      rows[2 * half] = r24_columns(v.x, v.y, dev::byte_select(column0, column1, 0x5140),
                                   dev::byte_select(column2, column3, 0x5140));
      rows[2 * half + 1] = r24_columns(v.z, v.w, dev::byte_select(column0, column1, 0x7362),
                                       dev::byte_select(column2, column3, 0x7362));
    }
  }
  // To the tile at `tile`: rows 4s + lane / 8, of odd s the eight columns lie with another bit.
  TAMIS_DEVICE void write(uint32_t tile, uint32_t lane) const {
    const uint32_t even = tile + r24_byte(lane / 8, 8 * (lane % 8)), odd = even ^ 64;
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
      dev::store_shared<dev::Word4>((s % 2 == 0 ? even : odd) + 512 * s, rows[s]);
    }
  }
};

// Over what R24Columns wrote, behind a barrier of the warp.
TAMIS_DEVICE void write_r24_entry(uint32_t entry, uint32_t tile) {
  dev::store_shared<uint16_t>(tile + (entry >> 16), static_cast<uint16_t>(entry));
}

// The residual of a record, of so many bytes.
TAMIS_DEVICE uint32_t r24_entries(uint32_t bytes) {
  return (bytes - static_cast<uint32_t>(r24::kHeaderBytes)) /
         static_cast<uint32_t>(r24::kEntryBytes);
}

// Those from entry `from` + lane on, of the record where it lies.
TAMIS_DEVICE void write_r24_residual(const uint8_t* record, uint32_t from, uint32_t entries,
                                     uint32_t tile) {
  const auto* at = reinterpret_cast<const uint32_t*>(record + r24::kHeaderBytes);
#pragma unroll 1
  for (uint32_t i = from; i < entries; i += 32) write_r24_entry(dev::load_global(at + i), tile);
}

// A warp writes a record, as a tile in shared memory first. Grid [tiles / warps].
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * kR24ExpandWarps, 2) expand_r24(const ExpandR24Params p) {
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const int64_t tile = int64_t{dev::block_index_x()} * kR24ExpandWarps + warp;
  if (tile >= p.tiles) return;
  const uint32_t begin = dev::load_global(p.offsets + tile);
  const uint32_t bytes = 16 * (dev::load_global(p.offsets + tile + 1) - begin);
  const uint8_t* record = p.records + int64_t{begin} * t16::kUnit;
  const auto* values = reinterpret_cast<const dev::Word4*>(record + r24::kCodeBytes) + lane;
  const uint32_t at = warp * static_cast<uint32_t>(r24::kTileBytes);
  const R24Lane of{.codes = dev::load_global(reinterpret_cast<const uint32_t*>(record) + lane),
                   .values = {dev::load_global(values), dev::load_global(values + 32)}};
  R24Columns(of).write(at, lane);
  dev::sync_warp();
  write_r24_residual(record, lane, r24_entries(bytes), at);
  dev::sync_warp();
  const auto col = static_cast<int32_t>(tile % p.col_tiles * 64 + 8 * (lane % 8));
#pragma unroll
  for (uint32_t step = 0; step < 4; ++step) {
    const auto row = static_cast<int32_t>(tile / p.col_tiles * 16 + 4 * step + lane / 8);
    if (row >= p.rows || col >= p.cols) continue;
    const auto eight =
        dev::load_shared<dev::Word4>(at + r24_byte(4 * step + lane / 8, 8 * (lane % 8)));
    uint16_t* out = p.out + row * p.out_stride + col;
    if (p.out_aligned && col + 8 <= p.cols) {
      *reinterpret_cast<dev::Word4*>(out) = eight;
      continue;
    }
    const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int32_t j = 0; j < 8; ++j) {
      if (col + j < p.cols) out[j] = static_cast<uint16_t>(pairs[j / 2] >> (16 * (j % 2)));
    }
  }
}

}  // namespace tamis
