// d24 to dense on the device as p24 is: a block has 8 of a unit's 32 rows.
#pragma once

#include "ops/spmm/d24_params.h"
#include "ops/spmm/p24_expand.cuh"

namespace tamis {

// Grid [4 * units] of 32 * kP24ExpandWarps threads, the quarters of a unit's rows neighbours.
TAMIS_GLOBAL void TAMIS_LAUNCH_BOUNDS(32 * kP24ExpandWarps, 2) expand_d24(const ExpandP24Params p) {
  const uint32_t unit = dev::block_index_x() / 4, quarter = dev::block_index_x() % 4;
  const uint32_t tile = quarter / 2;
  expand_p24_rows<false>(
      p, unit, quarter % 2,
      static_cast<int32_t>(unit / static_cast<uint32_t>(p.panels) * 32 + 8 * quarter),
      [&p, tile](uint32_t i, uint32_t lane) {
        const uint8_t* record = p.records + i * d24::kRecordBytes;
        const auto head = dev::load_global(reinterpret_cast<const dev::Word2*>(record + 8 * lane));
        P24Whole<false> whole;
        whole.places =
            tile == 0
                ? head.x
                : dev::load_global(reinterpret_cast<const uint32_t*>(record + 256 + 4 * lane));
        whole.columns = {head.y, 0};
        const uint8_t* at = record + 384 + p24::kValueBytes * tile + 16 * lane;
        whole.values[0] = dev::load_global(reinterpret_cast<const dev::Word4*>(at));
        whole.values[1] = dev::load_global(reinterpret_cast<const dev::Word4*>(at + 512));
        return whole;
      });
}

}  // namespace tamis
