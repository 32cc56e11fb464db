// What the m24 kernel for warpgroups gets, and how it is laid out; host side only but for the
// struct.
#pragma once

#include <cstdint>
#include <span>

#include "format/m24.h"
#include "ops/spmm/product_params.h"

namespace tamis {

// tickets [output tiles], partial [blocks, 2, tokens of an output tile / 8, threads, 4].
struct M24GroupParams : ProductParams {
  int32_t row_tiles = 0, col_tiles = 0;  // records
  int32_t col_panels = 0;                // panels of an output tile
  int32_t token_tiles = 0;         // output tiles over tokens; over rows they are further apart
  int32_t panels = 0, blocks = 0;  // panels of all output tiles, and how many blocks share them
  int32_t parts = 0;               // blocks of an output tile, a cluster; 1: they share as it comes
};

// One line of m24_layouts.def.
struct M24Layout {
  int32_t tokens, groups, depth, panels, blocks;
  bool direct;

  constexpr int32_t rows() const { return 64 * groups; }
  constexpr int32_t threads() const { return 128 * groups; }
  // A record's 64 columns have 128 bytes of x for each token. Records follow unless they are
  // direct.
  constexpr int32_t panel_bytes() const {
    const int32_t records = direct ? 0 : 4 * groups * static_cast<int32_t>(m24::kRecordBytes);
    return (depth * (tokens * 128 + records) + 1023) / 1024 * 1024;
  }
  constexpr int32_t shared_bytes() const { return panels * panel_bytes() + 16; }  // the flag
};

inline constexpr M24Layout kM24Layouts[] = {
#define TAMIS_M24_LAYOUT(tokens, groups, depth, panels, blocks, direct) \
  {tokens, groups, depth, panels, blocks, direct},
#include "ops/spmm/m24_layouts.def"
#undef TAMIS_M24_LAYOUT
};

// The plan with that layout (an index) and up to that many blocks, at least 1. clusters: of them
// where they are up to kMaxCluster for each output tile.
SpmmCudaPlan lay_out_m24_group(const PackedView& w, int64_t m, int32_t layout, int64_t blocks,
                               bool clusters = true);

// Pure: the layout that is expected to take least time, for any number of tokens.
Status plan_m24_group(const PackedView& w, int64_t m, const CudaDevice& device, SpmmCudaPlan* plan);

M24GroupParams m24_group_params(const SpmmCudaArgs& args, const SpmmCudaPlan& plan);

}  // namespace tamis
