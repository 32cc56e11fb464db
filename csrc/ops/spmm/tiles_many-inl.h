// y[m,n] = sum_k x[m,k] * w[n,k] by AMX for more tokens than one pair of panels, x of bf16 as in
// tiles-inl.h but in chunks of TilePlan::columns columns.
//
// Tile: kPanelRows rows of w times two panels of 16 tokens, four sums. The columns of a chunk are
// expanded once and multiplied by all panels. Beside these products, as many at each step, the
// words of the chunk that follows are expanded; beside those of a panel's last chunk the sums of
// the pair before are stored. Sums of a pair go to memory and back once a chunk.
//
// x comes through L1 by loads that do not keep it there (tileloaddt1): else it pushes the expanded
// weights out, 47 ns a step instead of 39 with 256 tokens.
//
// Rows is one format's rows: start(row) is the place of its first value; after begin(row, word,
// place), expand<words, exact>() writes the next words as bf16; place(); near_end(words): without
// care values past the last might be read; after begin_ask(row, word, place), ask() asks for what
// kUnitWords words take.
//
// Spans, Needs, Tail: as in tiles-inl.h.
//
// Cost (Emerald Rapids, 2.3 GHz while tiles are multiplied), ns for a step of 32 columns: products
// 28; sums 5.6 with 512 columns a chunk, 10.6 with 256; one word expanded beside it 0, two 2.
#pragma once

#include "ops/spmm/tiles-inl.h"

namespace tamis {
namespace {

// Columns of a chunk: with 256 the weights of this chunk and the next fit L1, which counts where
// few products share an expansion; with 512 half as many sums move.
inline constexpr int64_t kMostColumns = 768;
TAMIS_INLINE int64_t many_columns(int64_t cols, int64_t panels) {
  const int64_t about = panels > 10 ? 512 : 256;
  const int64_t chunks = (cols + about / 2 - 1) / about;
  return ceil_div(ceil_div(cols, chunks > 1 ? chunks : 1), 64) * 64;
}

inline constexpr int kUnitWords = 4;

// A stretch of memory that is asked for, `bytes` at a time.
struct Ask {
  const char* p = nullptr;
  int64_t bytes = 0;

  TAMIS_INLINE void some() {
    const char* const end = p + bytes;
    for (const char* line = p; line < end; line += 64) __builtin_prefetch(line, 0, kTilesToL2);
    p = end;
  }
};

// Chunks of a panel's rows in order, expanded a unit at a time ahead of the products: kUnitWords
// words of a row, or what its chunk has left.
template <class Rows>
struct ManyFeed {
  Rows rows;
  int64_t all_rows, row_end, first_column, last_column, columns;
  int64_t* resume;      // place of each row at first_column, or null where that is its start
  int64_t row, column;  // of the chunk: its panel's first, its own first
  int64_t words;        // of the chunk
  int count, r;         // rows of the panel that exist; the one being expanded
  int64_t left;         // words of it
  char *out, *to;       // [kPanelRows][columns] bf16; the next word
  int64_t ask_row;      // of the next panel: the row asked for, in order, a unit for each expanded
  int64_t ask_left;     // words of it in this span
  int64_t at[kPanelRows];

  TAMIS_INLINE ManyFeed(const Rows& of, const MatrixView& w, int64_t row_begin, int64_t row_end_of,
                        int64_t first, int64_t last, int64_t columns_of, int64_t* resume_of)
      : rows(of),
        all_rows(w.rows),
        row_end(row_end_of),
        first_column(first),
        last_column(last),
        columns(columns_of),
        resume(resume_of),
        row(row_begin) {
    begin_panel();
  }

  TAMIS_INLINE int64_t place_of(int64_t of) const {
    return first_column > 0 ? resume[of] : rows.start(of);
  }

  TAMIS_INLINE void begin_panel() {
    count = static_cast<int>(row_end - row < kPanelRows ? row_end - row : kPanelRows);
    if (count < 0) count = 0;
    for (int i = 0; i < count; ++i) at[i] = place_of(row + i);
    column = first_column;
    ask_row = row + kPanelRows - 1;
    ask_next();
  }
  // Of the next panel the next row.
  TAMIS_INLINE void ask_next() {
    ask_left = INT64_MAX;
    ++ask_row;
    if (ask_row >= row + 2 * kPanelRows || ask_row >= all_rows) return;
    rows.begin_ask(ask_row, first_column / 64, place_of(ask_row));
    ask_left = ceil_div(last_column - first_column, 64);
  }

  // The chunk goes to `buffer`.
  TAMIS_INLINE void begin_chunk(char* buffer) {
    out = buffer;
    words = ceil_div((last_column - column < columns ? last_column - column : columns), 64);
    r = -1;
    begin_row();
  }
  TAMIS_INLINE int64_t units() const { return count * ceil_div(words, kUnitWords); }
  // The next row, or the first after it that needs no care.
  TAMIS_INLINE void begin_row() {
    for (++r; r < count; ++r) {
      rows.begin(row + r, column / 64, at[r]);
      to = out + r * columns * 2;
      left = words;
      if (!rows.near_end(words)) return;
      for (; left > 0; --left, to += 128) rows.template expand<1, true>(to);
      at[r] = rows.place();
    }
  }
  TAMIS_INLINE void unit() {
    if (r >= count) return;
    rows.ask();
    if (left >= kUnitWords) {
      rows.template expand<kUnitWords, false>(to);
      to += kUnitWords * 128;
      left -= kUnitWords;
    } else {
      for (; left > 0; --left, to += 128) rows.template expand<1, false>(to);
    }
    ask_left -= kUnitWords;
    if (ask_left <= 0) ask_next();
    if (left > 0) return;
    at[r] = rows.place();
    begin_row();
  }
  // What is left of the chunk; then the one that follows is next.
  TAMIS_INLINE void finish() {
    while (r < count) unit();
    column += columns;
    if (column < last_column) return;
    for (int i = 0; i < count && resume; ++i) resume[row + i] = at[i];
    row += kPanelRows;
    begin_panel();
  }
};

// Sums that are done, stored to y one tile at a time.
template <class Unit>
struct ManyStores {
  const SpmmArgs& a;
  const TileSums* sums = nullptr;
  int64_t row = 0, panel = 0;
  int part = 0, parts = 0;

  TAMIS_INLINE explicit ManyStores(const SpmmArgs& of) : a(of) {}
  TAMIS_INLINE void begin(const TileSums* from, int64_t row_of, int64_t panel_of, int panels) {
    sums = from;
    row = row_of;
    panel = panel_of;
    part = 0;
    parts = 2 * panels;
  }
  TAMIS_INLINE void some() {
    if (part < parts) one();
  }
  TAMIS_INLINE void all() {
    while (part < parts) one();
  }

  TAMIS_INLINE void one() {
    const int p = part / 2, half = part % 2;
    const int64_t first = row + half * kTileRows;
    const int64_t rows = a.w.rows - first < kTileRows ? a.w.rows - first : kTileRows;
    ++part;
    if (rows <= 0) return;
    __m512i v[kTileRows];
#pragma GCC unroll 16
    for (int j = 0; j < kTileRows; ++j) v[j] = _mm512_load_si512(sums[p][half][j]);
    transpose(v);
    Unit::store(a, v, first, static_cast<int>(rows), (panel + p) * kPanelTokens);
  }
};

// Rows [row_begin, row_end), tokens of panels [panel, panel + panels).
template <class Unit, class Rows>
void many_tiles(const SpmmArgs& a, const Rows& rows, const TilePlan& plan, int64_t row_begin,
                int64_t row_end, int64_t panel, int64_t panels) {
  alignas(64) char weights[2][kPanelRows * kMostColumns * 2];
  alignas(64) TileSums here[kMostPanels];
  auto* prepared = static_cast<char*>(const_cast<void*>(a.prepared));
  const bool spans = plan.span < a.w.cols;
  auto* kept = reinterpret_cast<TileSums*>(prepared + plan.sums_at);
  auto* resume = spans ? reinterpret_cast<int64_t*>(prepared + plan.values_at) : nullptr;
  const int64_t columns = plan.columns, row_bytes = columns * 2, panel_bytes = columns * 32;
  ManyStores<Unit> stores(a);

  for (int64_t first = 0; first < a.w.cols; first += plan.span) {
    const int64_t last = first + plan.span < a.w.cols ? first + plan.span : a.w.cols;
    ManyFeed<Rows> feed(rows, a.w, row_begin, row_end, first, last, columns, resume);
    int turn = 0;
    feed.begin_chunk(weights[turn]);
    feed.finish();
    for (int64_t row = row_begin; row < row_end; row += kPanelRows) {
      TileSums* sums = spans ? kept + row / kPanelRows * plan.group : here;
      for (int64_t column = first; column < last; column += columns) {
        const bool ends = column + columns >= last, done = ends && last == a.w.cols;
        const int64_t words = ceil_div((ends ? last - column : columns), 64), steps = 2 * words;
        const char* w = weights[turn];
        const char* x = prepared + (column / columns * plan.panels + panel) * panel_bytes;
        turn ^= 1;
        feed.begin_chunk(weights[turn]);
        // Units are spread over all steps.
        const int64_t all_steps = ceil_div(panels, 2) * steps, units = feed.units();
        int64_t due = 0;
        const auto expand = [&]() __attribute__((always_inline)) {
          for (due += units; due >= all_steps; due -= all_steps) feed.unit();
        };
        const auto pair = [&]<int P>(int64_t p) __attribute__((always_inline)) {
          load_sums<P>(sums + p, column == 0);
          if (!ends) {
            multiply<Unit, P>(w, row_bytes, x + p * panel_bytes, kTileRowBytes, panel_bytes, steps,
                              [&](int64_t) __attribute__((always_inline)) { expand(); });
          } else {
            multiply<Unit, P>(w, row_bytes, x + p * panel_bytes, kTileRowBytes, panel_bytes, steps,
                              [&](int64_t) __attribute__((always_inline)) {
                                expand();
                                stores.some();
                              });
          }
          stores.all();
          store_sums<P>(sums + p);
          if (done) stores.begin(sums + p, row, panel + p, P);
        };
        int64_t p = 0;
        for (; p + 2 <= panels; p += 2) pair.template operator()<2>(p);
        if (p < panels) pair.template operator()<1>(p);
        feed.finish();
      }
      tiles_fence();
      stores.all();
    }
  }
}

template <class Unit, class Rows>
TAMIS_INLINE void spmm_many_tiles(const SpmmArgs& a, const Rows& rows, const TilePlan& plan,
                                  int64_t row_begin, int64_t row_end) {
  const TileRegisters registers;
  for (int64_t panel = 0; panel < plan.panels; panel += plan.group) {
    const int64_t left = plan.panels - panel;
    many_tiles<Unit>(a, rows, plan, row_begin, row_end, panel,
                     left < plan.group ? left : plan.group);
  }
}

}  // namespace
}  // namespace tamis
