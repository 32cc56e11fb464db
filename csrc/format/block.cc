// block: pack, unpack, check.
#include "format/block.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/status.h"
#include "format/checks.h"
#include "format/format.h"
#include "format/matrix.h"
#include "format/rows.h"
#include "format/values.h"
#include "format/words.h"

namespace tamis::block {
namespace {

struct Shape {
  int64_t rows, cols;  // of one block
  int64_t size() const { return rows * cols; }
};

// Of a stored value: bit patterns of floats, where -0 has a sign bit, or codes.
template <class Stored>
bool is_zero(Stored v) {
  return std::is_signed_v<Stored> ? v == 0 : static_cast<Stored>(v << 1) == 0;
}

template <class T>
bool any_kept(const KeptRows<T>& kept, int64_t row, int64_t col, Shape block) {
  for (int64_t i = 0; i < block.rows; ++i) {
    if (kept.any(row + i, col, block.cols)) return true;
  }
  return false;
}

// Writes one block, zero where a weight is not kept.
template <class Source>
void write_block(const Source& source, int64_t row, int64_t col, Shape block,
                 typename Source::Stored* out) {
  using Stored = typename Source::Stored;
  Stored scratch[64];
  for (int64_t i = 0; i < block.rows; ++i) {
    for (int64_t j = 0; j < block.cols; j += 64) {
      const int n = word_columns(block.cols, j / 64);
      const Stored* values = source.chunk(row + i, col + j, n, scratch);
      if (const uint8_t* keep = source.kept.keep) {
        keep += (row + i) * source.kept.cols + col + j;
        for (int b = 0; b < n; ++b) out[b] = keep[b] != 0 ? values[b] : Stored{0};
      } else {  // what is not kept is +0 or -0
        for (int b = 0; b < n; ++b) out[b] = is_zero(values[b]) ? Stored{0} : values[b];
      }
      out += n;
    }
  }
}

// Block rows in parallel: fn(block_row) over [0, rows / block.rows).
template <class Fn>
void for_block_rows(int64_t rows, int64_t cols, Shape block, const Fn& fn) {
  for_rows(rows / block.rows, cols * block.rows, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) fn(r);
  });
}

template <class T>
int64_t count_blocks(const KeptRows<T>& kept, int64_t block_row, Shape block) {
  int64_t count = 0;
  for (int64_t c = 0; c < kept.cols; c += block.cols) {
    count += any_kept(kept, block_row * block.rows, c, block) ? 1 : 0;
  }
  return count;
}

}  // namespace

Status pack_sizes(const DenseView& w, const PackSpec& spec, PackSizes* sizes) {
  const Shape block{spec.block_rows, spec.block_cols};
  std::atomic<int64_t> blocks{0};
  with_kept(w, [&](const auto& kept) {
    for_block_rows(w.rows, w.cols, block, [&](int64_t r) {
      blocks.fetch_add(count_blocks(kept, r, block), std::memory_order_relaxed);
    });
  });
  *sizes = {.values = blocks * block.size(),
            .row_offsets = w.rows / block.rows + 1,
            .col_indices = blocks};
  return {};
}

Status pack(const DenseView& w, const PackSpec& spec, const PackBuffers& out) {
  const Shape block{spec.block_rows, spec.block_cols};
  out.row_offsets[0] = 0;
  with_kept(w, [&](const auto& kept) {
    for_block_rows(w.rows, w.cols, block,
                   [&](int64_t r) { out.row_offsets[r + 1] = count_blocks(kept, r, block); });
  });
  accumulate(out.row_offsets, w.rows / block.rows);
  with_source(w, spec, out.scales, [&]<class Source>(const Source& source) {
    auto* values = static_cast<typename Source::Stored*>(out.values);
    for_block_rows(w.rows, w.cols, block, [&](int64_t r) {
      int64_t at = out.row_offsets[r];
      for (int64_t c = 0; c < w.cols; c += block.cols) {
        if (!any_kept(source.kept, r * block.rows, c, block)) continue;
        out.col_indices[at] = static_cast<int32_t>(c / block.cols);
        write_block(source, r * block.rows, c, block, values + at * block.size());
        ++at;
      }
    });
  });
  return {};
}

void unpack(const MatrixView& a, void* out, int64_t out_stride) {
  const Shape block{a.block_rows, a.block_cols};
  with_stored(a, out, [&]<class Dense>(const auto* values, Dense* dense) {
    for_block_rows(a.rows, a.cols, block, [&](int64_t r) {
      for (int64_t i = 0; i < block.rows; ++i) {
        Dense* row = dense + (r * block.rows + i) * out_stride;
        std::memset(row, 0, static_cast<size_t>(a.cols) * sizeof(Dense));
        for (int64_t b = a.row_offsets[r]; b < a.row_offsets[r + 1]; ++b) {
          const auto* from = values + b * block.size() + i * block.cols;
          Dense* to = row + a.col_indices[b] * block.cols;
          for (int64_t j = 0; j < block.cols; ++j) to[j] = static_cast<Dense>(from[j]);
        }
        scale_row(a, r * block.rows + i, row);
      }
    });
  });
}

void unpack_keep(const MatrixView& a, uint8_t* keep) {
  const Shape block{a.block_rows, a.block_cols};
  for_block_rows(a.rows, a.cols, block, [&](int64_t r) {
    for (int64_t i = 0; i < block.rows; ++i) {
      uint8_t* row = keep + (r * block.rows + i) * a.cols;
      std::memset(row, 0, static_cast<size_t>(a.cols));
      for (int64_t b = a.row_offsets[r]; b < a.row_offsets[r + 1]; ++b) {
        std::memset(row + a.col_indices[b] * block.cols, 1, static_cast<size_t>(block.cols));
      }
    }
  });
}

Status check_sizes(const MatrixView& a, const PackSizes& sizes) {
  const Shape block{a.block_rows, a.block_cols};
  TAMIS_RETURN_IF_ERROR(check_length("mask", sizes.mask, 0));
  TAMIS_RETURN_IF_ERROR(check_length("row_offsets", sizes.row_offsets, a.rows / block.rows + 1));
  if (a.nnz % block.size() != 0) {
    return error(Code::corrupt, "check: values: got %lld elements, wanted whole blocks of %lld",
                 static_cast<long long>(a.nnz), static_cast<long long>(block.size()));
  }
  return check_length("col_indices", sizes.col_indices, a.nnz / block.size());
}

Status check_content(const MatrixView& a) {
  const Shape block{a.block_rows, a.block_cols};
  const int64_t block_rows = a.rows / block.rows;
  TAMIS_RETURN_IF_ERROR(check_offsets(a.row_offsets, block_rows, a.nnz / block.size()));
  for (int64_t r = 0; r < block_rows; ++r) {
    TAMIS_RETURN_IF_ERROR(
        check_columns(a.col_indices, a.row_offsets[r], a.row_offsets[r + 1], a.cols / block.cols));
  }
  return {};
}

}  // namespace tamis::block
