// bitmap: one bit per weight says whether it is kept; kept values follow in k order.
//
//   values       [nnz]                    row 0's kept values in column order, then row 1's, ...
//   mask         [rows, ceil(cols/64)]    u64, bit j of word w = column 64w+j; unused bits are 0
//   row_offsets  [rows+1]                 i64, in values: row r owns values[row_offsets[r],
//                                         row_offsets[r+1]), as many as its mask has bits
//   scales       [rows, groups]           f32, i8 values only
//
// Bytes: nnz*size(dtype) + 8*rows*ceil(cols/64) + 8*(rows+1) + 4*rows*groups.
// Seek: to any row in O(1); inside a row by counting mask bits. Words do not depend on a vector
// length, so one file serves every ISA.
#pragma once

#include "base/status.h"
#include "format/format.h"

namespace tamis::bitmap {

Status pack_sizes(const DenseView& w, const PackSpec& spec, PackSizes* sizes);
Status pack(const DenseView& w, const PackSpec& spec, const PackBuffers& out);
void unpack(const MatrixView& a, void* out, int64_t out_stride);
void unpack_keep(const MatrixView& a, uint8_t* keep);
Status check_sizes(const MatrixView& a, const PackSizes& sizes);
Status check_content(const MatrixView& a);

}  // namespace tamis::bitmap
