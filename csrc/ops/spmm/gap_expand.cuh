// gap to dense on the device, for products with many tokens.
#pragma once

#include "base/cuda/dev.h"
#include "ops/spmm/gap.cuh"

namespace tamis {

// Eight neighbouring columns of a lane's row, which it writes at once.
struct GapChunk {
  uint16_t* out;  // the row; null for none
  bool aligned;
  int32_t cols;
  int32_t index;  // of the chunk
  uint32_t pairs[4] = {};

  // Writes the chunk, and zeros up to the chunk `next`, which begins.
  TAMIS_DEVICE void go_to(int32_t next) {
    while (index < next) {
      if (out != nullptr && aligned && 8 * index + 8 <= cols) {
        *reinterpret_cast<dev::Word4*>(out + 8 * index) = {pairs[0], pairs[1], pairs[2], pairs[3]};
      } else if (out != nullptr) {
#pragma unroll
        for (int32_t j = 0; j < 8; ++j) {
          if (8 * index + j < cols) {
            out[8 * index + j] = static_cast<uint16_t>(pairs[j / 2] >> (16 * (j % 2)));
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[i] = 0;
      ++index;
    }
  }
  TAMIS_DEVICE void put(int32_t column, uint32_t value) {
    const uint32_t half = value << (16 * (column % 2));
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] |= column / 2 % 4 == i ? half : 0;
  }
};

// A warp writes what lies between the first entries of its part of a slice and of the next one, the
// chunk in which the part ends included; its entries of the next part are in the step after the
// last. Grid [slices] of 32 * warps threads.
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * kMaxGapWarps, 2) expand_gap(const ExpandGapParams p) {
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  constexpr uint32_t kStepUnits = gap::kStepBytes / gap::kUnit;
  const GapSlice found(p, dev::block_index_x());
  const uint32_t steps = found.steps;
  const uint8_t* slice = p.records + int64_t{found.unit} * gap::kUnit;
  const uint32_t row = dev::load_global(reinterpret_cast<const uint32_t*>(slice) + lane);
  for (uint32_t part = warp; part < 1u << p.parts_log2; part += p.warps) {
    const uint32_t begin = steps * part >> p.parts_log2, end = steps * (part + 1) >> p.parts_log2;
    if (begin == end && (steps > 0 || part > 0)) continue;
    auto column = static_cast<int32_t>(dev::load_global(
        reinterpret_cast<const uint16_t*>(slice + gap::kRowBytes) + part * gap::kLanes + lane));
    GapChunk chunk{.out = row == UINT32_MAX ? nullptr : p.out + row * p.out_stride,
                   .aligned = p.out_aligned,
                   .cols = p.cols,
                   .index = begin == 0 ? 0 : column / 8 + 1};
    for (uint32_t i = begin; i < end + 1 && i < steps; ++i) {
      const uint8_t* step = slice + int64_t{p.header_units + i * kStepUnits} * gap::kUnit;
      const auto values = dev::load_stream(reinterpret_cast<const dev::Word4*>(step) + lane);
      const uint32_t gaps =
          dev::load_stream(reinterpret_cast<const uint32_t*>(step + gap::kValueBytes) + lane);
      const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
      for (uint32_t e = 0; e < gap::kStepEntries; ++e) {
        column += static_cast<int32_t>(gaps >> (8 * (e % 4) + 4 * (e / 4)) & 15u);
        if (i < end) chunk.go_to(column / 8);
        if (column / 8 == chunk.index) chunk.put(column, pairs[e / 2] >> (16 * (e % 2)) & 0xffffu);
      }
    }
    chunk.go_to(end == steps ? (p.cols + 7) / 8 : chunk.index + 1);
  }
}

}  // namespace tamis
