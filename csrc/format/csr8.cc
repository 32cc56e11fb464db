// csr8: pack, unpack, check.
#include "format/csr8.h"

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

namespace tamis::csr8 {
namespace {

// Calls fn(value index, column) for row r.
template <class Fn>
void visit(const MatrixView& a, int64_t r, const Fn& fn) {
  const int64_t words = mask_words(a.cols);
  const uint8_t* counts = a.col_bytes + r * words;
  const uint8_t* columns = a.col_bytes + a.rows * words;
  int64_t i = a.row_offsets[r];
  for (int64_t word = 0; word < words; ++word) {
    for (int left = counts[word]; left > 0; --left, ++i) fn(i, 64 * word + columns[i]);
  }
}

// Whether `count` columns of a word ascend and are below `limit`.
bool ascending(const uint8_t* columns, int64_t count, int limit) {
  if (count == 0) return true;
  bool good = columns[count - 1] < limit;
  for (int64_t i = 1; i < count; ++i) good &= columns[i - 1] < columns[i];
  return good;
}

}  // namespace

Status pack_sizes(const DenseView& w, const PackSpec& /*spec*/, PackSizes* sizes) {
  const int64_t nnz = count_kept(w);
  *sizes = {
      .values = nnz, .row_offsets = w.rows + 1, .col_bytes = w.rows * mask_words(w.cols) + nnz};
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
    uint8_t* columns = out.col_bytes + w.rows * words;
    for_rows(w.rows, w.cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        int64_t at = out.row_offsets[r];
        for (int64_t i = 0; i < words; ++i) {
          const int n = word_columns(w.cols, i);
          const uint64_t word = source.kept.word(r, 64 * i, n);
          if (word != 0) compact_word(source, r, 64 * i, n, word, values + at);
          const int64_t start = at;
          for_each_bit(word, [&](int j) { columns[at++] = static_cast<uint8_t>(j); });
          out.col_bytes[r * words + i] = static_cast<uint8_t>(at - start);
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
        visit(a, r,
              [&](int64_t i, int64_t column) { row[column] = static_cast<Dense>(values[i]); });
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
      visit(a, r, [&](int64_t, int64_t column) { row[column] = 1; });
    }
  });
}

Status check_sizes(const MatrixView& a, const PackSizes& sizes) {
  TAMIS_RETURN_IF_ERROR(check_length("mask", sizes.mask, 0));
  TAMIS_RETURN_IF_ERROR(check_length("row_offsets", sizes.row_offsets, a.rows + 1));
  TAMIS_RETURN_IF_ERROR(check_length("col_indices", sizes.col_indices, 0));
  return check_length("col_bytes", sizes.col_bytes, a.rows * mask_words(a.cols) + a.nnz);
}

// A row's counts add up to its values, and each word's columns ascend and exist.
Status check_content(const MatrixView& a) {
  TAMIS_RETURN_IF_ERROR(check_offsets(a.row_offsets, a.rows, a.nnz));
  const int64_t words = mask_words(a.cols);
  const uint8_t* columns = a.col_bytes + a.rows * words;
  for (int64_t r = 0; r < a.rows; ++r) {
    int64_t i = a.row_offsets[r];
    const int64_t end = a.row_offsets[r + 1];
    for (int64_t word = 0; word < words; ++word) {
      const int64_t count = a.col_bytes[r * words + word];
      if (count > end - i) {
        return error(Code::corrupt,
                     "check: col_bytes[%lld]: got %lld values in a word of row %lld, wanted at "
                     "most the %lld that the row has left",
                     static_cast<long long>(r * words + word), static_cast<long long>(count),
                     static_cast<long long>(r), static_cast<long long>(end - i));
      }
      const int limit = word_columns(a.cols, word);
      if (ascending(columns + i, count, limit)) {
        i += count;
        continue;
      }
      int previous = -1;
      while (columns[i] > previous && columns[i] < limit) previous = columns[i++];
      return error(Code::corrupt,
                   "check: col_bytes[%lld]: got column %d, wanted more than %d and less than %d",
                   static_cast<long long>(a.rows * words + i), columns[i], previous, limit);
    }
    if (i != end) {
      return error(Code::corrupt,
                   "check: col_bytes: got counts of %lld in row %lld, wanted its %lld values",
                   static_cast<long long>(i - a.row_offsets[r]), static_cast<long long>(r),
                   static_cast<long long>(end - a.row_offsets[r]));
    }
  }
  return {};
}

}  // namespace tamis::csr8
