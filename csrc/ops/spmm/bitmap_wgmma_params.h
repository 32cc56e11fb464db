// What the bitmap kernel for warpgroups gets, and how it is laid out; host side only but for the
// struct.
#pragma once

#include <cstdint>

#include "ops/spmm/m24_wgmma_params.h"

namespace tamis {

// A panel is 64 columns: a word of the mask for each row.
struct BitmapGroupParams : M24GroupParams {
  const uint64_t* mask = nullptr;        // [rows, words]
  const uint16_t* values = nullptr;      // [nnz], at a multiple of 16 bytes
  const int64_t* row_offsets = nullptr;  // [rows + 1], or null: every row has row_values
  int64_t row_values = 0;
  uint32_t nnz = 0;
  int32_t words = 0;
};

// Shared memory: of a row of a panel its values, from the multiple of 16 bytes before the first on;
// an odd number of 16 bytes, so that rows begin four banks apart.
inline constexpr int32_t kBitmapPitch = 2 * 64 + 16;

// One line of bitmap_layouts.def.
struct BitmapLayout {
  int32_t tokens, groups, panels, blocks;

  constexpr int32_t rows() const { return 64 * groups; }
  constexpr int32_t threads() const { return 128 * groups; }
  // Values come so many panels before they are used, words of the mask, which say where values lie,
  // as many more.
  constexpr int32_t ahead() const { return panels - 2; }
  constexpr int32_t masks() const { return 2 * panels; }
  constexpr int32_t masks_at() const { return panels * tokens * 128; }  // x comes first
  constexpr int32_t values_at() const { return masks_at() + masks() * rows() * 8; }
  constexpr int32_t flag_at() const { return values_at() + panels * rows() * kBitmapPitch; }
  constexpr int32_t shared_bytes() const { return flag_at() + 16; }
};

inline constexpr BitmapLayout kBitmapLayouts[] = {
#define TAMIS_BITMAP_LAYOUT(tokens, groups, panels, blocks) {tokens, groups, panels, blocks},
#include "ops/spmm/bitmap_layouts.def"
#undef TAMIS_BITMAP_LAYOUT
};

inline constexpr int64_t kMaxBitmapTokens = 1 << 20;

// The plan with that layout (an index) and up to that many blocks, at least 1. clusters: of them
// where they are up to kMaxCluster for each output tile.
SpmmCudaPlan lay_out_bitmap(const PackedView& w, int64_t m, int32_t layout, int64_t blocks,
                            bool clusters = true);

// Pure: the layout that is expected to take least time.
Status plan_spmm_bitmap(const PackedView& w, int64_t m, const CudaDevice& device,
                        SpmmCudaPlan* plan);

BitmapGroupParams bitmap_group_params(const SpmmCudaArgs& args, const SpmmCudaPlan& plan);

}  // namespace tamis
