// csr: compressed sparse rows; smaller than bitmap below one kept weight in 32, than csr8 below one
// in 192.
//
//   values       [nnz]             row 0's kept values in column order, then row 1's, ...
//   row_offsets  [rows+1]          i64, in values: row r owns [row_offsets[r], row_offsets[r+1])
//   col_indices  [nnz]             i32, column of each value, ascending inside a row
//   scales       [rows, groups]    f32, i8 values only
//
// Bytes: nnz*(size(dtype) + 4) + 8*(rows+1) + 4*rows*groups.
// Seek: to any row in O(1); inside a row by binary search.
#pragma once

#include "base/status.h"
#include "format/format.h"

namespace tamis::csr {

Status pack_sizes(const DenseView& w, const PackSpec& spec, PackSizes* sizes);
Status pack(const DenseView& w, const PackSpec& spec, const PackBuffers& out);
void unpack(const MatrixView& a, void* out, int64_t out_stride);
void unpack_keep(const MatrixView& a, uint8_t* keep);
Status check_sizes(const MatrixView& a, const PackSizes& sizes);
Status check_content(const MatrixView& a);

}  // namespace tamis::csr
