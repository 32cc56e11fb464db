// y[m,n] = sum_k x[m,k] * w[n,k] for few tokens, leaving out the zeros of w.  w: bitmap, nm or
// csr8; accumulates f32.
//
// x: f32, [passes of L::kTokens tokens][blocks of 64 L::kWords columns][columns][tokens], copies
// past m; what follows a block is L's.
//
// Tile: one row, a block's columns, L::kTokens tokens. Which columns the row stores of these
// becomes a list, one row ahead, since a word by itself would end a loop 64 columns apart, at a
// wrong guess each. Then each weight is multiplied by its column of x from L1.
//
// Memory: x of a block stays in L1 for a group of rows whose stored weights stay in L2; the next
// group's lines are fetched beside the products, evenly.
//
// Needs: mask bits past k clear, columns within their word (format check).   Tail: values are never
// read past nnz, columns that a row does not store never count.
//
// L, lists of one instruction set (lists_<isa>.h):
//   W, kTokens, kWords   weights; tokens of a pass; mask words of a block
//   kStride              floats between rows' sums
//   kGroupBytes          stored, of a group of rows
//   kBlockStep           between blocks of x
//   pass_floats(words)   between passes
//   Row                  a row's list, with n, how many weights it has
//   with_ways<Cell>(per_word, count, f)   calls f with the constant by which masks (u64) or counts
//                        (u8) are listed: kWay
//   list<kWay>(masks, count, row), list<kWay>(counts, count, columns, end, row)
//   take(values, end, row)          after it: the n weights as the products read them
//   add(row, end, x, sums)          sums += weights times columns
//   write<X>(args, sums, row, rows, token)
#pragma once

#include "ops/spmm/pages.h"
#include "ops/spmm/panels-inl.h"

namespace tamis {
namespace {

inline constexpr int64_t kListGroupRows = 192;  // at most

// Rows that take turns over the blocks of x, and what to fetch meanwhile.
template <class L>
struct ListGroup {
  using W = typename L::W;
  const W *values, *values_end;
  const uint8_t *columns, *columns_end;  // of csr8
  int64_t words;                         // of a row
  int64_t rows;
  int64_t at[kListGroupRows];                              // next value of each
  alignas(64) float sums[kListGroupRows + 8][L::kStride];  // read in squares
  typename L::Row lists[2];
  // Of the next group: values, csr8's columns, each so many lines with a row and block, and how
  // many bytes lie between a row's masks or counts and the next group's.
  const char *next, *next_end, *next_columns, *next_columns_end;
  int64_t lines, column_lines, to_next;
};

TAMIS_INLINE void fetch_lines(const char*& at, const char* end, int64_t lines) {
  if (at >= end) return;
  for (int64_t i = 0; i < lines; ++i, at += 64) __builtin_prefetch(at, 0, kFetchToL2);
}

// A block of `count` words, whose masks or counts begin at `cells`, of all rows of a group.
template <class L, int kWay, class Cell>
__attribute__((noinline)) void add_block(ListGroup<L>& g, const Cell* cells, int64_t count,
                                         const float* x) {
  constexpr bool kCounts = sizeof(Cell) == 1;
  const int64_t words = g.words, rows = g.rows, to_next = g.to_next;
  const auto list = [&](int64_t r) __attribute__((always_inline)) {
    auto& mine = g.lists[r % 2];
    const int64_t at = g.at[r];
    if constexpr (kCounts) {
      L::template list<kWay>(cells, count, g.columns + at, g.columns_end, mine);
    } else {
      L::template list<kWay>(cells, count, mine);
    }
    L::take(g.values + at, g.values_end, mine);
    g.at[r] = at + mine.n;
  };
  list(0);
  float* sums = g.sums[0];
  for (int64_t r = 0; r < rows; ++r, sums += L::kStride) {
    fetch_lines(g.next, g.next_end, g.lines);
    if constexpr (kCounts) fetch_lines(g.next_columns, g.next_columns_end, g.column_lines);
    const char* later = reinterpret_cast<const char*>(cells) + to_next;
#pragma GCC unroll 8
    for (int64_t b = 0; b < L::kWords * static_cast<int64_t>(sizeof(Cell)); b += 64) {
      __builtin_prefetch(later + b, 0, kFetchToL2);
    }
    if (r + 1 < rows) {
      cells += words;
      list(r + 1);
    }
    L::add(g.lists[r % 2], g.values_end, x, sums);
  }
}

// Sums of a group's rows, tokens along them, to y.
template <class L, class X>
void write_squares(const SpmmArgs& a, const float* sums, int64_t row, int64_t rows, int64_t token) {
  for (int64_t r = 0; r < rows; r += kSquare) {
    for (int64_t t = 0; t < L::kTokens && token + t < a.m; t += kSquare) {
      const int64_t here = L::kTokens - t, left = a.m - token - t;
      write_square<X>(a, sums + r * L::kStride + t, L::kStride, row + r, rows - r, token + t,
                      here < left ? here : left);
    }
  }
}

template <class L, class X>
void spmm_lists(const SpmmArgs& a, int64_t row_begin, int64_t row_end) {
  using W = typename L::W;
  const MatrixView& w = a.w;
  const int64_t words = mask_words(w.cols);
  const bool csr8 = w.format == Format::csr8;
  const int64_t cell_bytes = csr8 ? 1 : 8;
  const int64_t row_bytes =
      w.nnz * (static_cast<int64_t>(sizeof(W)) + (csr8 ? 1 : 0)) / w.rows + words * cell_bytes + 1;
  const int64_t fit = L::kGroupBytes / row_bytes / 16 * 16;
  const int64_t group = fit < 16 ? 16 : fit < kListGroupRows ? fit : kListGroupRows;
  const int64_t per_word = w.nnz / (w.rows * words);
  ListGroup<L> g;
  g.values = static_cast<const W*>(w.values);
  g.values_end = g.values + w.nnz;
  g.columns = csr8 ? w.col_bytes + w.rows * words : nullptr;
  g.columns_end = csr8 ? g.columns + w.nnz : nullptr;
  g.words = words;
  const auto place = [&](int64_t row) {
    return reinterpret_cast<const char*>(g.values + row_start(w, row));
  };
  const auto columns = [&](int64_t row) {
    return reinterpret_cast<const char*>(g.columns + row_start(w, row));
  };
  PageWalks walks(w, row_begin, row_end);
  const int64_t first_end = row_begin + group < row_end ? row_begin + group : row_end;
  fetch_to_l2(place(row_begin), place(first_end) - place(row_begin));
  if (csr8) fetch_to_l2(columns(row_begin), columns(first_end) - columns(row_begin));
  for (int64_t row = row_begin; row < row_end; row += group) {
    const int64_t end = row + group < row_end ? row + group : row_end;
    const int64_t after = end + group < row_end ? end + group : row_end;
    const int64_t step_bytes = (end - row) * ceil_div(words, L::kWords) * 64;
    g.rows = end - row;
    g.next = place(end);
    g.next_end = place(after);
    g.lines = ceil_div(g.next_end - g.next, step_bytes);
    if (csr8) {
      g.next_columns = columns(end);
      g.next_columns_end = columns(after);
      g.column_lines = ceil_div(g.next_columns_end - g.next_columns, step_bytes);
    }
    g.to_next = after > end ? group * words * cell_bytes : 0;
    walks.before(after);
    const auto* passes = static_cast<const float*>(a.prepared);
    for (int64_t token = 0; token < a.m; token += L::kTokens, passes += L::pass_floats(words)) {
      const float* x = passes;
      __builtin_memset(g.sums, 0, sizeof g.sums);
      for (int64_t r = row; r < end; ++r) g.at[r - row] = row_start(w, r);
      for (int64_t word = 0; word < words; word += L::kWords, x += L::kBlockStep) {
        const int64_t cell = row * words + word, left = words - word;
        const int64_t count = left < L::kWords ? left : L::kWords;
        const auto block = [&]<class Cell>(const Cell* cells) {
          L::template with_ways<Cell>(per_word, count,
                                      [&](auto way) { add_block<L, way()>(g, cells, count, x); });
        };
        csr8 ? block(w.col_bytes + cell) : block(w.mask + cell);
      }
      L::template write<X>(a, g.sums[0], row, end - row, token);
    }
  }
}

}  // namespace
}  // namespace tamis

#define TAMIS_LISTS_KERNEL(format, w, x, level, form, W, X, T)                            \
  void spmm_##format##_##w##_##x##_##level##_##form(const SpmmArgs& a, int64_t row_begin, \
                                                    int64_t row_end) {                    \
    spmm_lists<Lists<W, T>, X>(a, row_begin, row_end);                                    \
  }
#define TAMIS_LISTS_FORMATS(w, x, level, form, W, X, T)  \
  TAMIS_LISTS_KERNEL(bitmap, w, x, level, form, W, X, T) \
  TAMIS_LISTS_KERNEL(nm, w, x, level, form, W, X, T)     \
  TAMIS_LISTS_KERNEL(csr8, w, x, level, form, W, X, T)
