// groupq: groups of group_size = 16 or 32 columns, kept or dropped whole; codes of 4 or 8 bits.
//
//   values       [groups, group_size * bits / 8]  codes of each stored group, ascending by row; of
//                                                 u4 the low half of byte j is code j, the high
//                                                 half code j + group_size/2
//   mask         [rows, ceil(cols/group_size/64)] u64, bit j of word v = group 64v+j; others are 0
//   row_offsets  [rows+1]                         i64, in groups
//   scales       [groups, 2]                      f16: scale, then zero point, of each stored group
//
// w = scale * (code - zero). pack stores every group with a kept weight: its range, widened to take
// in 0, is cut into 15 or 255 steps, and the zero point is the code nearest to 0, so weights that
// are not kept in a stored group come back as 0 and the others within half a step. A scale is 0
// where all its weights are.
//
// Bytes: groups*(group_size*bits/8 + 4) + 8*rows*ceil(cols/group_size/64) + 8*(rows+1); with all
// groups kept this is plain W4 or W8. One stream per array, groups of a row in a row.
// Seek: to any row in O(1). nnz counts the weights of stored groups. cols % group_size == 0.
// After: Zeng et al. 2024, GQSA (arXiv:2412.17560); a bit a group instead of their u16 index.
#pragma once

#include "base/status.h"
#include "format/format.h"

namespace tamis::groupq {

Status pack_sizes(const DenseView& w, const PackSpec& spec, PackSizes* sizes);
Status pack(const DenseView& w, const PackSpec& spec, const PackBuffers& out);
void unpack(const MatrixView& a, void* out, int64_t out_stride);
void unpack_keep(const MatrixView& a, uint8_t* keep);
Status check_sizes(const MatrixView& a, const PackSizes& sizes);
Status check_content(const MatrixView& a);

}  // namespace tamis::groupq
