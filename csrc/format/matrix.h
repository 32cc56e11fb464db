// MatrixView: a borrowed, read-only compressed weight w[n,k] in any canonical format.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace tamis {

enum class Format : uint8_t { bitmap = 0, csr = 1, nm = 2, block = 3, csr8 = 4, groupq = 5 };

constexpr const char* name_of(Format f) {
  switch (f) {
    case Format::bitmap:
      return "bitmap";
    case Format::csr:
      return "csr";
    case Format::nm:
      return "nm";
    case Format::block:
      return "block";
    case Format::csr8:
      return "csr8";
    case Format::groupq:
      return "groupq";
  }
  return "?";
}

// Plain struct of pointers into caller-owned arrays of exactly the stated lengths: nothing may be
// read outside them (files are mapped, so there is no padding to rely on). Each format's header
// says which fields it uses; the others are null or zero. All arrays are aligned to their element.
struct MatrixView {
  Format format = Format::bitmap;
  int64_t rows = 0;  // n, output features
  int64_t cols = 0;  // k, input features

  DType dtype = DType::f32;      // of values
  const void* values = nullptr;  // [nnz], kept values, of u4 two in a byte; zeros are allowed
  int64_t nnz = 0;               // stored values (block, groupq: zeros inside them included)

  // bitmap, nm: [rows, words(cols)]; bit j of word w = column 64w+j. groupq: of groups, not columns
  const uint64_t* mask = nullptr;
  // bitmap, csr, csr8: [rows+1], in values; block: [rows/block_rows+1], in blocks;
  // groupq: [rows+1], in groups
  const int64_t* row_offsets = nullptr;
  // csr: [nnz], ascending in a row; block: [blocks], block column
  const int32_t* col_indices = nullptr;
  // csr8: [rows * words(cols)] counts, then [nnz] columns within their word
  const uint8_t* col_bytes = nullptr;

  int32_t keep = 0, of = 0;                // nm: `keep` kept of every `of` consecutive columns
  int32_t block_rows = 0, block_cols = 0;  // block: r x c

  const float* scales = nullptr;           // i8 only: [rows, groups(cols)], w = scale * code
  const uint16_t* group_scales = nullptr;  // groupq only: [groups, 2] f16, scale and zero point
  // Columns that share a scale; i8: cols = one scale per row, groupq: 16 or 32.
  int64_t group_size = 0;
};

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
constexpr int64_t mask_words(int64_t cols) {
  return ceil_div(cols, 64);
}

// Where a row's values begin, of formats but block; of row `rows` their number. nm stores no
// offsets: every row keeps as many. Inlined into kernels of every instruction set.
__attribute__((always_inline)) constexpr int64_t row_start(const MatrixView& w, int64_t row) {
  return w.format == Format::nm ? row * (w.cols / w.of * w.keep) : w.row_offsets[row];
}

// i8: columns that share a scale (group_size 0 = the whole row), and such groups in a row.
constexpr int64_t group_columns(int64_t cols, int64_t group_size) {
  return group_size == 0 ? cols : group_size;
}
constexpr int64_t scale_groups(int64_t cols, int64_t group_size) {
  return cols == 0 ? 0 : ceil_div(cols, group_columns(cols, group_size));
}

}  // namespace tamis
