// t16i8 to dense on the device, for products with many tokens.
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "ops/spmm/t16_params.h"
#include "ops/spmm/t16i8_decode.cuh"

namespace tamis {

// A warp writes one tile, each lane eight groups of four columns: scale * code, rounded to out's
// dtype. A lane's window of codes may end up to 11 bytes after the record, so it is read byte by
// byte. Grid [ceil(tiles / kBlockWarps)].
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kBlockThreads, 4) expand_t16i8(const ExpandT16Params p) {
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const int64_t tile = int64_t{dev::block_index_x()} * kBlockWarps + warp;
  if (tile >= int64_t{p.row_tiles} * p.col_tiles) return;  // the same in every lane
  const uint8_t* record = p.records + int64_t{dev::load_global(p.offsets + tile)} * t16::kUnit;
  const uint32_t word = dev::load_global(reinterpret_cast<const uint32_t*>(record) + lane);
  const uint32_t before =
      dev::load_global(reinterpret_cast<const uint32_t*>(record + t16i8::kWordBytes) + lane);
  const auto* starts = reinterpret_cast<const uint16_t*>(record + t16i8::kStartsAt);
#pragma unroll
  for (uint32_t run = 0; run < 4; ++run) {
    const uint8_t* code =
        record + dev::load_global(starts + run) + dev::byte_permute(before, 0, 0x4440u + run);
    const auto col = static_cast<int32_t>(tile % p.col_tiles * 64 + 16 * (lane % 4) + 4 * run);
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      const auto row = static_cast<int32_t>(tile / p.col_tiles * 16 + lane / 4 + 8 * half);
      const int32_t group = static_cast<int32_t>(tile % p.col_tiles * 64) / p.group_size;
      const float scale =
          row < p.rows ? dev::load_global(p.scales + int64_t{row} * p.groups + group) : 0.0f;
      uint32_t value[4];
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        value[i] = 0;
        if (word >> (8 * run + 4 * half + i) & 1u) {
          const auto w = static_cast<float>(static_cast<int8_t>(dev::load_global(code++)));
          const float scaled = dev::mul(scale, w);
          value[i] = narrow(p.dtype, scaled);
        }
      }
      if (row >= p.rows) continue;
      uint16_t* to = p.out + row * p.out_stride + col;
      if (p.out_aligned && col + 4 <= p.cols) {
        *reinterpret_cast<dev::Word2*>(to) = {value[0] | value[1] << 16, value[2] | value[3] << 16};
        continue;
      }
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        if (col + i < p.cols) to[i] = static_cast<uint16_t>(value[i]);
      }
    }
  }
}

}  // namespace tamis
