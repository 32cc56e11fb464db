// What the m24 kernel for many tokens gets, and how it is laid out; host side only but for the
// struct.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/cuda/tensor_map.h"
#include "format/m24.h"
#include "ops/spmm/product_params.h"

namespace tamis {

struct M24ManyParams : ProductParams {
  TensorMap x_boxes = {}, record_boxes = {};  // of a stage
  TensorMap y_boxes = {};                     // where it is aligned and the layout has boxes of y
  int32_t col_tiles = 0;                      // records
  int32_t tiles = 0, token_tiles = 0;         // of the output; token_tiles of them share their rows
  int32_t clusters = 0;                       // that take tiles in turns
  int32_t parts = 0;                          // of k, the blocks of a cluster
  bool y_aligned = false;                     // rows of y start at multiples of 16 bytes
};

// One line of m24_many_layouts.def.
struct M24ManyLayout {
  int32_t tokens, groups, slots, blocks;

  constexpr int32_t rows() const { return 64 * groups; }
  constexpr int32_t consumers() const { return 128 * groups; }
  constexpr int32_t threads() const { return consumers() + 128; }
  // Of a thread at launch, of one that multiplies and of the others.
  constexpr int32_t registers() const { return 65536 / (threads() * blocks) / 8 * 8; }
  constexpr int32_t taken_registers() const {
    return (registers() * threads() - kept_registers() * 128) / consumers() / 8 * 8;
  }
  constexpr int32_t kept_registers() const { return 40; }
  // A stage is a record's 64 columns: x, then the records of all warps.
  constexpr int32_t stage_bytes() const {
    const int32_t records = 4 * groups * static_cast<int32_t>(m24::kRecordBytes);
    return (tokens * 2 * kBoxCols + records + 1023) / 1024 * 1024;
  }
  // Of a box of y, 64 rows of a warpgroup; 0: warps write 32 tokens of 16 rows at a time.
  constexpr int32_t y_tokens() const { return tokens == 256 ? 128 : 0; }
  constexpr int32_t y_bytes() const { return groups * std::max(y_tokens(), 32) * 64 * 2; }
  constexpr int32_t stages() const {
    const int32_t shared = 228 * 1024 / blocks - 1024;  // of sm_90
    return std::min((shared - y_bytes()) / (stage_bytes() + 16), 10);
  }
  constexpr int32_t shared_bytes() const {  // and two barriers a stage
    return stages() * (stage_bytes() + 16) + y_bytes();
  }
};

inline constexpr M24ManyLayout kM24ManyLayouts[] = {
#define TAMIS_M24_MANY(tokens, groups, slots, blocks) {tokens, groups, slots, blocks},
#include "ops/spmm/m24_many_layouts.def"
#undef TAMIS_M24_MANY
};

// The plan with that layout (an index) and as many parts of k, of one tile each, a cluster.
SpmmCudaPlan lay_out_m24_many(const PackedView& w, int64_t m, int32_t layout, int32_t parts,
                              const CudaDevice& device);

// Pure: the layout and parts that are expected to take least time, for more than 32 tokens.
Status plan_m24_many(const PackedView& w, int64_t m, const CudaDevice& device, SpmmCudaPlan* plan);

// The boxes are the caller's to fill in, of x where its rows are aligned.
M24ManyParams m24_many_params(const SpmmCudaArgs& args, const SpmmCudaPlan& plan);
MatrixBoxes m24_many_x(const SpmmCudaArgs& args, const SpmmCudaPlan& plan);
MatrixBoxes m24_many_y(const SpmmCudaArgs& args, const SpmmCudaPlan& plan);  // no rows: none
RecordBoxes m24_many_records(const SpmmCudaArgs& args, const SpmmCudaPlan& plan);

}  // namespace tamis
