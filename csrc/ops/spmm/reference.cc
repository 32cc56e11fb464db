// Reference of spmm: one pass over the definition in double, straight from the stored arrays.
#include "base/elements.h"
#include "base/numeric.h"
#include "ops/spmm/check.h"
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

double element(const void* data, DType type, int64_t i) {
  switch (type) {
    case DType::i8:
      return static_cast<const int8_t*>(data)[i];
    case DType::u8:
      return static_cast<const uint8_t*>(data)[i];
    case DType::u4:  // halves of a group lie in one nibble each: add_groups finds them
      return 0;
    default:
      return load_element(type, data, i);
  }
}

void add_product(const SpmmArgs& a, int64_t row, int64_t column, double w, double* y) {
  for (int64_t t = 0; t < a.m; ++t) {
    y[t * a.w.rows + row] += w * element(a.x, a.x_dtype, t * a.x_stride + column);
  }
}

// Adds w[row, column] * x[token, column] to y[token, row]; `i` is where the value is stored.
void add(const SpmmArgs& a, int64_t row, int64_t column, int64_t i, double* y) {
  double w = element(a.w.values, a.w.dtype, i);
  if (a.w.dtype == DType::i8) {
    w *= a.w.scales[row * ceil_div(a.w.cols, a.w.group_size) + column / a.w.group_size];
  }
  add_product(a, row, column, w, y);
}

void add_groups(const SpmmArgs& a, int64_t row, double* y) {
  const MatrixView& w = a.w;
  const int64_t size = w.group_size, groups = w.cols / size;
  const auto* bytes = static_cast<const uint8_t*>(w.values);
  int64_t i = w.row_offsets[row];
  for (int64_t g = 0; g < groups; ++g) {
    if (!(w.mask[row * mask_words(groups) + g / 64] >> (g % 64) & 1)) continue;
    const double scale = f32_from_f16(w.group_scales[2 * i]);
    const double zero = f32_from_f16(w.group_scales[2 * i + 1]);
    for (int64_t j = 0; j < size; ++j) {
      const int code = w.dtype == DType::u8
                           ? bytes[i * size + j]
                           : bytes[i * size / 2 + j % (size / 2)] >> (j < size / 2 ? 0 : 4) & 15;
      add_product(a, row, g * size + j, scale * (code - zero), y);
    }
    ++i;
  }
}

void add_masked_row(const SpmmArgs& a, int64_t row, int64_t i, double* y) {
  for (int64_t k = 0; k < a.w.cols; ++k) {
    if (a.w.mask[row * mask_words(a.w.cols) + k / 64] >> (k % 64) & 1) add(a, row, k, i++, y);
  }
}

void add_row(const SpmmArgs& a, int64_t row, double* y) {
  const MatrixView& w = a.w;
  switch (w.format) {
    case Format::bitmap:
      return add_masked_row(a, row, w.row_offsets[row], y);
    case Format::nm:
      return add_masked_row(a, row, row * (w.cols / w.of) * w.keep, y);
    case Format::csr:
      for (int64_t i = w.row_offsets[row]; i < w.row_offsets[row + 1]; ++i) {
        add(a, row, w.col_indices[i], i, y);
      }
      return;
    case Format::csr8: {
      const int64_t words = mask_words(w.cols);
      int64_t i = w.row_offsets[row];
      for (int64_t k = 0; k < w.cols; k += 64) {
        for (int n = w.col_bytes[row * words + k / 64]; n > 0; --n, ++i) {
          add(a, row, k + w.col_bytes[w.rows * words + i], i, y);
        }
      }
      return;
    }
    case Format::groupq:
      return add_groups(a, row, y);
    case Format::block:
      for (int64_t b = w.row_offsets[row / w.block_rows]; b < w.row_offsets[row / w.block_rows + 1];
           ++b) {
        for (int64_t j = 0; j < w.block_cols; ++j) {
          add(a, row, int64_t{w.col_indices[b]} * w.block_cols + j,
              (b * w.block_rows + row % w.block_rows) * w.block_cols + j, y);
        }
      }
  }
}

}  // namespace

Status spmm_reference(const SpmmArgs& a, double* y) {
  TAMIS_RETURN_IF_ERROR(check_spmm(a));
  for (int64_t row = 0; row < a.w.rows; ++row) {
    for (int64_t t = 0; t < a.m; ++t) {
      y[t * a.w.rows + row] = a.bias ? element(a.bias, a.x_dtype, row) : 0.0;
    }
    add_row(a, row, y);
  }
  return {};
}

}  // namespace tamis
