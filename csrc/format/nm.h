// nm: exactly `keep` kept of every `of` consecutive columns, 1 <= keep <= of <= 32.
//
//   values  [rows, cols/of, keep]    kept values in column order
//   mask    [rows, ceil(cols/64)]    u64 as in bitmap; `keep` bits in each group of `of` columns;
//                                    a group may cross a word when `of` does not divide 64
//   scales  [rows, groups]           f32, i8 values only
//
// Bytes: rows*cols/of*keep*size(dtype) + 8*rows*ceil(cols/64) + 4*rows*groups. At 2:4 the mask
// costs the same bit per weight as two 2-bit ids, and one kernel family serves both formats.
// Seek: to any group in O(1).
#pragma once

#include "base/status.h"
#include "format/format.h"

namespace tamis::nm {

Status pack_sizes(const DenseView& w, const PackSpec& spec, PackSizes* sizes);
Status pack(const DenseView& w, const PackSpec& spec, const PackBuffers& out);
void unpack(const MatrixView& a, void* out, int64_t out_stride);
void unpack_keep(const MatrixView& a, uint8_t* keep);
Status check_sizes(const MatrixView& a, const PackSizes& sizes);
Status check_content(const MatrixView& a);

}  // namespace tamis::nm
