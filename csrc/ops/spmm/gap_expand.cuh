// gap to dense on the device, where its mask lies elsewhere: a warp takes a part of a slice, a lane
// its row's entries. Entries of 16 columns meet in registers and are stored as 32 bytes, all that
// memory takes at a time: single entries took 7 times as long as what they move.
#pragma once

#include "base/cuda/dev.h"
#include "ops/spmm/gap_params.h"

namespace tamis {

// 16 columns of a row, from a multiple of 16 on.
struct GapWindow {
  uint32_t index = UINT32_MAX;
  uint64_t quads[4] = {};

  TAMIS_DEVICE void put(uint32_t column, uint16_t value) {
    const uint64_t moved = uint64_t{value} << (16 * (column & 3));
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) quads[i] |= (column >> 2 & 3) == i ? moved : 0;
  }

  // Whole, or of a window that others write too, and of rows off 16 bytes, what is not zero.
  TAMIS_DEVICE void store(uint16_t* row, bool whole) const {
    uint16_t* to = row + 16 * index;
    if (whole) {
      const auto word = [](uint64_t quad, int i) { return static_cast<uint32_t>(quad >> 32 * i); };
      auto* halves = reinterpret_cast<dev::Word4*>(to);
      halves[0] = {word(quads[0], 0), word(quads[0], 1), word(quads[1], 0), word(quads[1], 1)};
      halves[1] = {word(quads[2], 0), word(quads[2], 1), word(quads[3], 0), word(quads[3], 1)};
      return;
    }
#pragma unroll
    for (uint32_t i = 0; i < 16; ++i) {
      const auto value = static_cast<uint16_t>(quads[i / 4] >> (16 * (i % 4)));
      if (value != 0) to[i] = value;
    }
  }
};

// Writes the entries of gap into zeros. Grid [ceil(slices * parts / kGapExpandWarps)].
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * kGapExpandWarps, 4) expand_gap(const ExpandGapParams p) {
  const uint32_t lane = dev::thread_index() % 32;
  const auto warp =
      static_cast<int32_t>(dev::block_index_x() * kGapExpandWarps + dev::thread_index() / 32);
  const int32_t slice = warp / p.parts, part = warp % p.parts;
  if (slice >= p.slices) return;
  const uint32_t unit = dev::load_global(p.offsets + slice);
  const uint32_t units = dev::load_global(p.offsets + slice + 1) - unit;
  const uint8_t* from = p.records + gap::kUnit * int64_t{unit};
  const uint32_t row = dev::load_global(reinterpret_cast<const uint32_t*>(from) + lane);
  if (row == UINT32_MAX) return;
  uint32_t column =
      dev::load_global(reinterpret_cast<const uint16_t*>(from + gap::kRowBytes) + 32 * part + lane);
  uint16_t* out = p.out + row * p.out_stride;
  const int64_t steps = (units - p.header_units) / (gap::kStepBytes / gap::kUnit);
  const int64_t end = steps * (part + 1) / p.parts;
  from += gap::kUnit * int64_t{p.header_units};
  GapWindow window;
  bool shared = true;  // the first window, which the part before may have a part of
#pragma unroll 2
  for (int64_t step = steps * part / p.parts; step < end; ++step) {
    const uint8_t* at = from + step * gap::kStepBytes;
    const auto values = dev::load_global(reinterpret_cast<const dev::Word4*>(at + 16 * lane));
    const uint32_t gaps =
        dev::load_global(reinterpret_cast<const uint32_t*>(at + gap::kValueBytes) + lane);
    const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (uint32_t i = 0; i < gap::kStepEntries; ++i) {
      column += gaps >> (8 * (i % 4) + 4 * (i / 4)) & 15u;
      if (column / 16 != window.index) {
        if (window.index != UINT32_MAX) {
          window.store(out, p.out_aligned && !shared);
          shared = false;
        }
        window = {.index = column / 16};
      }
      window.put(column, static_cast<uint16_t>(pairs[i / 2] >> (16 * (i % 2))));
    }
  }
  if (window.index != UINT32_MAX) window.store(out, false);
}

}  // namespace tamis
