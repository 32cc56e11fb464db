// t16 and g4 to dense on the device, for products with many tokens.
#pragma once

#include "base/cuda/dev.h"
#include "ops/spmm/g4_decode.cuh"
#include "ops/spmm/t16_decode.cuh"
#include "ops/spmm/t16_params.h"

namespace tamis {

// Writes a lane's 16 columns of two rows of a tile from its A fragments.
TAMIS_DEVICE void write_fragments(const ExpandT16Params& p, int64_t tile, uint32_t lane,
                                  const uint32_t (&a)[4][4]) {
  const auto col = static_cast<int32_t>(tile % p.col_tiles * 64 + 16 * (lane % 4));
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const auto row = static_cast<int32_t>(tile / p.col_tiles * 16 + lane / 4 + 8 * half);
    if (row >= p.rows) continue;
    uint16_t* out = p.out + row * p.out_stride + col;
    if (p.out_aligned && col + 16 <= p.cols) {
      auto* wide = reinterpret_cast<dev::Word4*>(out);
      wide[0] = {a[0][half], a[0][half + 2], a[1][half], a[1][half + 2]};
      wide[1] = {a[2][half], a[2][half + 2], a[3][half], a[3][half + 2]};
    } else {
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const uint32_t pair = a[j / 4][half + (j % 4 / 2) * 2];
        if (col + j < p.cols) out[j] = static_cast<uint16_t>(pair >> (16 * (j % 2)));
      }
    }
  }
}

// A warp writes one tile, each lane 16 columns of two rows, from its record in shared memory
// (values picked out of global memory took twice as long). Grid [ceil(tiles / kBlockWarps)].
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kBlockThreads, 4) expand_t16(const ExpandT16Params p) {
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const int64_t tile = int64_t{dev::block_index_x()} * kBlockWarps + warp;
  if (tile >= int64_t{p.row_tiles} * p.col_tiles) return;
  const uint32_t begin = dev::load_global(p.offsets + tile);
  const uint32_t bytes =
      (dev::load_global(p.offsets + tile + 1) - begin) * static_cast<uint32_t>(t16::kUnit);
  const uint8_t* from = p.records + int64_t{begin} * t16::kUnit;
  const uint32_t record = warp * p.stage_bytes;
  for (uint32_t i = 16 * lane; i < bytes; i += 16 * 32) {
    dev::copy_async16(record + i, from + i, 16);
  }
  dev::commit_async();
  dev::wait_async<0>();
  dev::sync_warp();
  const auto word = dev::load_shared<uint32_t>(record + 4 * lane);
  uint32_t at[8], a[4][4];
  first_values(record, word, dev::load_shared<dev::Word4>(record + t16::kWordBytes), at);
  const auto load = [](uint32_t i) { return dev::load_shared<uint16_t>(i); };
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    expand_step(load, word >> (8 * step), at[2 * step], at[2 * step + 1], a[step]);
  }
  write_fragments(p, tile, lane, a);
}

// The same of g4.
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kBlockThreads, 2) expand_g4(const ExpandT16Params p) {
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const int64_t tile = int64_t{dev::block_index_x()} * kBlockWarps + warp;
  if (tile >= int64_t{p.row_tiles} * p.col_tiles) return;
  const uint8_t* record = p.records + dev::load_global(p.offsets + tile) * t16::kUnit;
  G4Units units;
  units.load(record, dev::load_global(reinterpret_cast<const dev::Word2*>(record)), lane);
  uint32_t a[4][4];
  if (p.dtype == DType::f16) {
    units.expand<DType::f16>(a);
  } else {
    units.expand<DType::bf16>(a);
  }
  write_fragments(p, tile, lane, a);
}

}  // namespace tamis
