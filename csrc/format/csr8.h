// csr8: compressed sparse rows, one byte a column; the smallest from 0.5 to 11 % kept weights.
//
//   values       [nnz]               row 0's kept values in column order, then row 1's, ...
//   row_offsets  [rows+1]            i64, in values: row r owns [row_offsets[r], row_offsets[r+1])
//   col_bytes    [rows*words + nnz]  u8: for each row and each 64 columns how many values it has;
//                                    then for each value its column within those 64, ascending
//   scales       [rows, groups]      f32, i8 values only
//
// words = words(cols). Bytes: nnz*(size(dtype) + 1) + rows*words + 8*(rows+1) + 4*rows*groups:
// less than bitmap below 7 of 64. A kernel picks the inputs of a word out of registers, so its time
// goes with the kept weights, not with the columns.
// Seek: to any row in O(1); inside a row by adding counts.
#pragma once

#include "base/status.h"
#include "format/format.h"

namespace tamis::csr8 {

Status pack_sizes(const DenseView& w, const PackSpec& spec, PackSizes* sizes);
Status pack(const DenseView& w, const PackSpec& spec, const PackBuffers& out);
void unpack(const MatrixView& a, void* out, int64_t out_stride);
void unpack_keep(const MatrixView& a, uint8_t* keep);
Status check_sizes(const MatrixView& a, const PackSizes& sizes);
Status check_content(const MatrixView& a);

}  // namespace tamis::csr8
