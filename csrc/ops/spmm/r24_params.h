// What the r24 product gets, and how it is laid out; host side only but for the structs.
#pragma once

#include <cstdint>

#include "base/cuda/tensor_map.h"
#include "format/r24.h"
#include "ops/spmm/product_params.h"

namespace tamis {

inline constexpr int64_t kMaxR24Tokens = 128;
inline constexpr int32_t kMostR24Parts = 16;

// tickets [output tiles], partial [output tiles, parts, 2 * row tiles, threads that multiply, 4].
struct SpmmR24Params : ProductParams {
  TensorMap x_boxes = {};
  int32_t row_tiles = 0, col_tiles = 0;  // records
  int32_t parts = 1;                     // of k, the blocks of an output tile
  int32_t panels = 0, longer = 0;        // column tiles of a part, and how many have one more
  bool cluster = false;                  // which are a cluster
  bool y_paired = false;                 // even rows of y are at multiples of four bytes
};

// One line of r24_layouts.def.
struct R24Layout {
  int32_t row_tiles, groups, expanders, stages, slots;

  constexpr int32_t rows() const { return 16 * row_tiles; }
  constexpr int32_t tokens() const { return 64 * groups; }
  constexpr int32_t consumers() const { return 128 * groups; }
  constexpr int32_t threads() const { return consumers() + 32 * expanders; }
  // A stage is 64 columns: the weights of all row tiles, then x.
  constexpr int32_t weight_bytes() const {
    return row_tiles * static_cast<int32_t>(r24::kTileBytes);
  }
  constexpr int32_t stage_bytes() const { return weight_bytes() + tokens() * 2 * kBoxCols; }
  // A slot holds a record on its way to a warp that expands it, but for what its residual has
  // beyond slot_entries, which is rare and read from where it lies.
  constexpr int32_t slot_entries() const { return 160; }
  constexpr int32_t slot_bytes() const {
    return static_cast<int32_t>(r24::kHeaderBytes + r24::kEntryBytes * slot_entries());
  }
  constexpr int32_t slots_at() const { return stages * stage_bytes(); }
  constexpr int32_t barriers_at() const { return slots_at() + expanders * slots * slot_bytes(); }
  // Two of each stage, one of each slot, and that of a cluster's sums.
  constexpr int32_t barriers() const { return 2 * stages + expanders * slots + 1; }
  constexpr int32_t sums_there() const { return barriers_at() + 8 * (barriers() - 1); }
  constexpr int32_t flag_at() const { return barriers_at() + 8 * barriers(); }
  constexpr int32_t shared_bytes() const { return flag_at() + 16; }
};

inline constexpr R24Layout kR24Layouts[] = {
#define TAMIS_R24_LAYOUT(row_tiles, groups, expanders, stages, slots) \
  {row_tiles, groups, expanders, stages, slots},
#include "ops/spmm/r24_layouts.def"
#undef TAMIS_R24_LAYOUT
};

// The plan with that layout (an index) and as many parts of k, at least one column tile each.
// cluster: they are one where that is possible.
SpmmCudaPlan lay_out_spmm_r24(const PackedView& w, int32_t layout, int32_t parts, bool cluster);

// The boxes are the caller's to fill in, where rows of x are aligned.
SpmmR24Params spmm_r24_params(const SpmmCudaArgs& args, const SpmmCudaPlan& plan);
MatrixBoxes spmm_r24_x(const SpmmCudaArgs& args);

// Writing it out: warps of a block, each a record.
inline constexpr int32_t kR24ExpandWarps = 8;

struct ExpandR24Params {
  const uint8_t* records;
  const uint32_t* offsets;
  uint16_t* out;
  int64_t out_stride;
  int32_t rows, cols, col_tiles;
  int64_t tiles;
  bool out_aligned;  // its rows, to 16 bytes
};

ExpandR24Params expand_r24_params(const PackedView& w, void* out, int64_t out_stride);

}  // namespace tamis
