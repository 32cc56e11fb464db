// bitmap: pack, unpack, check.
#include "format/bitmap.h"

#include <cstdint>

#include "base/numeric.h"
#include "base/status.h"
#include "format/checks.h"
#include "format/format.h"
#include "format/matrix.h"
#include "format/rows.h"
#include "format/values.h"
#include "format/words.h"

namespace tamis::bitmap {

Status pack_sizes(const DenseView& w, const PackSpec& /*spec*/, PackSizes* sizes) {
  *sizes = {
      .values = count_kept(w), .mask = w.rows * mask_words(w.cols), .row_offsets = w.rows + 1};
  return {};
}

Status pack(const DenseView& w, const PackSpec& spec, const PackBuffers& out) {
  const int64_t words = mask_words(w.cols);
  out.row_offsets[0] = 0;
  with_kept(w, [&](const auto& kept) {
    for_rows(w.rows, w.cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        out.row_offsets[r + 1] = write_mask_row(kept, r, out.mask + r * words);
      }
    });
  });
  accumulate(out.row_offsets, w.rows);
  with_source(w, spec, out.scales, [&]<class Source>(const Source& source) {
    auto* values = static_cast<typename Source::Stored*>(out.values);
    for_rows(w.rows, w.cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        compact_row(source, r, out.mask + r * words, values + out.row_offsets[r]);
      }
    });
  });
  return {};
}

void unpack(const MatrixView& a, void* out, int64_t out_stride) {
  const int64_t words = mask_words(a.cols);
  with_stored(a, out, [&](const auto* values, auto* dense) {
    for_rows(a.rows, a.cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        expand_row(a.mask + r * words, a.cols, values + a.row_offsets[r], dense + r * out_stride);
        scale_row(a, r, dense + r * out_stride);
      }
    });
  });
}

void unpack_keep(const MatrixView& a, uint8_t* keep) {
  for_rows(a.rows, a.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      expand_mask_row(a.mask + r * mask_words(a.cols), a.cols, keep + r * a.cols);
    }
  });
}

Status check_sizes(const MatrixView& a, const PackSizes& sizes) {
  TAMIS_RETURN_IF_ERROR(check_length("mask", sizes.mask, a.rows * mask_words(a.cols)));
  TAMIS_RETURN_IF_ERROR(check_length("row_offsets", sizes.row_offsets, a.rows + 1));
  return check_length("col_indices", sizes.col_indices, 0);
}

Status check_content(const MatrixView& a) {
  TAMIS_RETURN_IF_ERROR(check_offsets(a.row_offsets, a.rows, a.nnz));
  const int64_t words = mask_words(a.cols);
  for (int64_t r = 0; r < a.rows; ++r) {
    const uint64_t* row = a.mask + r * words;
    TAMIS_RETURN_IF_ERROR(check_mask_tail(row, r, a.cols));
    int64_t bits = 0;
    for (int64_t w = 0; w < words; ++w) bits += popcount(row[w]);
    const int64_t values = a.row_offsets[r + 1] - a.row_offsets[r];
    if (bits != values) {
      return error(
          Code::corrupt, "check: mask: got %lld bits in row %lld, wanted %lld as row_offsets say",
          static_cast<long long>(bits), static_cast<long long>(r), static_cast<long long>(values));
    }
  }
  return {};
}

}  // namespace tamis::bitmap
