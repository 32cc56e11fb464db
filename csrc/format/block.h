// block: dense blocks of block_rows x block_cols; a block is stored when any weight in it is kept.
//
//   values       [blocks, block_rows, block_cols]    weights not kept inside a stored block are 0
//   row_offsets  [rows/block_rows + 1]               i64, in blocks
//   col_indices  [blocks]                            i32, block column, ascending in a block row
//   scales       [rows, groups]                      f32, i8 values only
//
// Bytes: blocks*(block_rows*block_cols*size(dtype) + 4) + 8*(rows/block_rows + 1) + 4*rows*groups.
// Seek: to any block row in O(1). nnz counts every stored value, zeros included.
#pragma once

#include "base/status.h"
#include "format/format.h"

namespace tamis::block {

Status pack_sizes(const DenseView& w, const PackSpec& spec, PackSizes* sizes);
Status pack(const DenseView& w, const PackSpec& spec, const PackBuffers& out);
void unpack(const MatrixView& a, void* out, int64_t out_stride);
void unpack_keep(const MatrixView& a, uint8_t* keep);
Status check_sizes(const MatrixView& a, const PackSizes& sizes);
Status check_content(const MatrixView& a);

}  // namespace tamis::block
