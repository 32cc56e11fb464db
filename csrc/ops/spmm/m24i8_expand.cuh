// m24i8 and m24i4 to dense on the device, for products with many tokens.
#pragma once

#include "base/cuda/dev.h"
#include "base/cuda/halves.h"
#include "ops/spmm/spmm_i8.cuh"

namespace tamis {

// A warp writes one tile, each lane eight groups of four columns: scale * unit * byte, rounded to
// out's dtype.
template <class Codes>
TAMIS_DEVICE void expand_two_of_four(const ExpandT16Params& p, float unit) {
  const uint32_t warp = dev::thread_index() / 32, lane = dev::thread_index() % 32;
  const int64_t tile = int64_t{dev::block_index_x()} * kBlockWarps + warp;
  if (tile >= int64_t{p.row_tiles} * p.col_tiles) return;
  const uint8_t* record = p.records + tile * int64_t{Codes::kRecordBytes};
  const auto* words = reinterpret_cast<const uint32_t*>(record);
  Codes codes;
  codes.load(record + int64_t{m24i8::kPlaceBytes} + int64_t{Codes::kLaneBytes} * lane);
  const dev::Word4 bytes = codes.bytes();
  const uint32_t fours[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
  const auto first = static_cast<int32_t>(tile % p.col_tiles * 64);
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {  // rows g, g + 8; then the second 16 elements of both
    const uint32_t said = dev::load_global(words + lane / 4 * 4 + 2 * (i / 2) + i % 2);
    const auto row = static_cast<int32_t>(tile / p.col_tiles * 16 + lane / 4 + 8 * (i % 2));
    if (row >= p.rows) continue;
    const float scale =
        dev::mul(dev::load_global(p.scales + int64_t{row} * p.groups + first / p.group_size), unit);
#pragma unroll
    for (uint32_t j = 0; j < 2; ++j) {  // elements 4t + 2j and the next
      const int32_t col = first + static_cast<int32_t>(32 * (i / 2) + 8 * (lane % 4) + 4 * j);
      const uint32_t places = said >> (8 * (lane % 4) + 4 * j);
      uint32_t value[2], out[4];
#pragma unroll
      for (uint32_t e = 0; e < 2; ++e) {
        const auto code = static_cast<int8_t>(fours[i] >> (16 * j + 8 * e));
        const float w = dev::mul(scale, static_cast<float>(code));
        value[e] = narrow(p.dtype, w);
      }
#pragma unroll
      for (uint32_t at = 0; at < 4; ++at) {
        out[at] = at == (places & 3) ? value[0] : at == (places >> 2 & 3) ? value[1] : 0;
      }
      uint16_t* to = p.out + row * p.out_stride + col;
      if (p.out_aligned && col + 4 <= p.cols) {
        *reinterpret_cast<dev::Word2*>(to) = {out[0] | out[1] << 16, out[2] | out[3] << 16};
        continue;
      }
#pragma unroll
      for (int32_t at = 0; at < 4; ++at) {
        if (col + at < p.cols) to[at] = static_cast<uint16_t>(out[at]);
      }
    }
  }
}

// Grid [ceil(tiles / kBlockWarps)].
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kBlockThreads, 4) expand_m24i8(const ExpandT16Params p) {
  expand_two_of_four<EightBits>(p, 1.0f);
}
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(kBlockThreads, 4) expand_m24i4(const ExpandT16Params p) {
  expand_two_of_four<FourBits>(p, m24i4::kUnit);
}

}  // namespace tamis
