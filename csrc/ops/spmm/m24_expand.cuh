// m24 to dense on the device, for products with many tokens.
#pragma once

#include "base/cuda/dev.h"
#include "ops/spmm/t16_params.h"

namespace tamis {

// A warp writes one tile, each lane eight groups of four columns. Grid [ceil(tiles / kBlockWarps)].
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kBlockThreads, 4) expand_m24(const ExpandT16Params p) {
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const int64_t tile = int64_t{dev::block_index_x()} * kBlockWarps + warp;
  if (tile >= int64_t{p.row_tiles} * p.col_tiles) return;
  const uint8_t* record = p.records + tile * int64_t{m24::kRecordBytes};
  const auto* words = reinterpret_cast<const uint32_t*>(record);
#pragma unroll
  for (uint32_t step = 0; step < 2; ++step) {
    const uint8_t* at = record + m24::kPlaceBytes + step * m24::kStepBytes + 16 * lane;
    const auto values = dev::load_global(reinterpret_cast<const dev::Word4*>(at));
    const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {  // rows g, g + 8; then the second eight elements of both
      const uint32_t places = dev::load_global(words + lane / 4 * 4 + 2 * step + i / 2) >>
                              (16 * (i % 2) + 4 * (lane % 4));
      const auto row = static_cast<int32_t>(tile / p.col_tiles * 16 + lane / 4 + 8 * (i % 2));
      const auto col =
          static_cast<int32_t>(tile % p.col_tiles * 64 + 32 * step + 16 * (i / 2) + 4 * (lane % 4));
      if (row >= p.rows) continue;
      uint16_t* out = p.out + row * p.out_stride + col;
      uint32_t value[4];
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) {
        value[j] = j == (places & 3)        ? pairs[i] & 0xffffu
                   : j == (places >> 2 & 3) ? pairs[i] >> 16
                                            : 0;
      }
      if (p.out_aligned && col + 4 <= p.cols) {
        *reinterpret_cast<dev::Word2*>(out) = {value[0] | value[1] << 16,
                                               value[2] | value[3] << 16};
        continue;
      }
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) {
        if (col + j < p.cols) out[j] = static_cast<uint16_t>(value[j]);
      }
    }
  }
}

}  // namespace tamis
