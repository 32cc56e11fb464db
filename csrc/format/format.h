// pack, unpack and check over every format: the canonical weight formats behind one door.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "format/matrix.h"

namespace tamis {

// w[rows, cols], stride elements between rows; f32, f16 or bf16.
struct DenseView {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t rows = 0, cols = 0, stride = 0;
  const uint8_t* keep = nullptr;  // [rows, cols] contiguous, nonzero = kept; null = keep w != 0
};

// What to pack into. dtype equals the source's, or i8 (then group_size applies); groupq: u4 or u8.
struct PackSpec {
  Format format = Format::bitmap;
  DType dtype = DType::f32;
  int32_t keep = 0, of = 0;                // nm
  int32_t block_rows = 0, block_cols = 0;  // block
  int64_t group_size = 0;                  // i8: columns per scale, 0 = whole row; groupq: 16, 32
  int32_t code_limit = 127;                // i8: largest magnitude of a code, at most 127
};

// Caller-owned outputs; lengths from pack_sizes. Arrays the format does not use may be null.
struct PackBuffers {
  void* values = nullptr;
  uint64_t* mask = nullptr;
  int64_t* row_offsets = nullptr;
  int32_t* col_indices = nullptr;
  uint8_t* col_bytes = nullptr;
  float* scales = nullptr;
  uint16_t* group_scales = nullptr;
};

// Element counts of each array; 0 = not used by the format. Of u4 an element is two values.
struct PackSizes {
  int64_t values = 0, mask = 0, row_offsets = 0, col_indices = 0, col_bytes = 0, scales = 0;
  int64_t group_scales = 0;
};

// Extents are at most 2^31 - 1. w and keep must not change between the two calls.
// nm: fails if a group of `of` columns does not keep exactly `keep`, or cols % of != 0 (with a null
// keep mask a group with fewer nonzeros is filled up with its lowest-indexed zeros, more is an
// error). block: fails if rows % r or cols % c; stores every block with at least one kept weight.
// groupq: fails if cols % group_size; stores every group with at least one kept weight.
Status pack_sizes(const DenseView& w, const PackSpec& spec, PackSizes* sizes);
Status pack(const DenseView& w, const PackSpec& spec, const PackBuffers& out);

// Writes all rows*cols elements of `out` (dtype = a.dtype, or f32 of codes), zeros included.
Status unpack(const MatrixView& a, void* out, int64_t out_stride);

// keep[rows*cols], 1 where a value is stored (block, groupq: where its block or group is).
Status unpack_keep(const MatrixView& a, uint8_t* keep);

// Everything a kernel relies on: popcounts, monotone offsets, index ranges, finite scales, sizes.
// `sizes` are the element counts the caller really has. Run once when arrays come from outside: it
// reads nothing beyond them, whatever the fields say. check_sizes is the part that reads no array.
Status check_sizes(const MatrixView& a, const PackSizes& sizes);
Status check(const MatrixView& a, const PackSizes& sizes);

// NVIDIA 2:4 metadata: two 2-bit column ids per group of four, id order ascending, eight groups per
// u32, least significant first, groups in row-major order. Writes the mask words of an nm 2:4
// matrix.
Status import_nvidia_24(const uint32_t* meta, int64_t rows, int64_t cols, uint64_t* mask);

}  // namespace tamis
