// csr: pack, unpack, check.
#include "format/csr.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/status.h"
#include "format/checks.h"
#include "format/format.h"
#include "format/matrix.h"
#include "format/rows.h"
#include "format/values.h"
#include "format/words.h"

namespace tamis::csr {
namespace {

// Appends the columns of the set bits of `word`; returns their count.
int write_columns(uint64_t word, int64_t col, int32_t* out) {
  int count = 0;
  for_each_bit(word, [&](int j) { out[count++] = static_cast<int32_t>(col + j); });
  return count;
}

}  // namespace

Status pack_sizes(const DenseView& w, const PackSpec& /*spec*/, PackSizes* sizes) {
  const int64_t nnz = count_kept(w);
  *sizes = {.values = nnz, .row_offsets = w.rows + 1, .col_indices = nnz};
  return {};
}

Status pack(const DenseView& w, const PackSpec& spec, const PackBuffers& out) {
  const int64_t words = mask_words(w.cols);
  out.row_offsets[0] = 0;
  with_kept(w, [&](const auto& kept) {
    for_rows(w.rows, w.cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) out.row_offsets[r + 1] = count_row(kept, r);
    });
  });
  accumulate(out.row_offsets, w.rows);
  with_source(w, spec, out.scales, [&]<class Source>(const Source& source) {
    auto* values = static_cast<typename Source::Stored*>(out.values);
    for_rows(w.rows, w.cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        int64_t at = out.row_offsets[r];
        for (int64_t i = 0; i < words; ++i) {
          const int n = word_columns(w.cols, i);
          const uint64_t word = source.kept.word(r, 64 * i, n);
          if (word == 0) continue;
          compact_word(source, r, 64 * i, n, word, values + at);
          at += write_columns(word, 64 * i, out.col_indices + at);
        }
      }
    });
  });
  return {};
}

void unpack(const MatrixView& a, void* out, int64_t out_stride) {
  with_stored(a, out, [&]<class Dense>(const auto* values, Dense* dense) {
    for_rows(a.rows, a.cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        Dense* row = dense + r * out_stride;
        std::memset(row, 0, static_cast<size_t>(a.cols) * sizeof(Dense));
        for (int64_t i = a.row_offsets[r]; i < a.row_offsets[r + 1]; ++i) {
          row[a.col_indices[i]] = static_cast<Dense>(values[i]);
        }
        scale_row(a, r, row);
      }
    });
  });
}

void unpack_keep(const MatrixView& a, uint8_t* keep) {
  for_rows(a.rows, a.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      uint8_t* row = keep + r * a.cols;
      std::memset(row, 0, static_cast<size_t>(a.cols));
      for (int64_t i = a.row_offsets[r]; i < a.row_offsets[r + 1]; ++i) row[a.col_indices[i]] = 1;
    }
  });
}

Status check_sizes(const MatrixView& a, const PackSizes& sizes) {
  TAMIS_RETURN_IF_ERROR(check_length("mask", sizes.mask, 0));
  TAMIS_RETURN_IF_ERROR(check_length("row_offsets", sizes.row_offsets, a.rows + 1));
  return check_length("col_indices", sizes.col_indices, a.nnz);
}

Status check_content(const MatrixView& a) {
  TAMIS_RETURN_IF_ERROR(check_offsets(a.row_offsets, a.rows, a.nnz));
  for (int64_t r = 0; r < a.rows; ++r) {
    TAMIS_RETURN_IF_ERROR(
        check_columns(a.col_indices, a.row_offsets[r], a.row_offsets[r + 1], a.cols));
  }
  return {};
}

}  // namespace tamis::csr
