// y[m,n] = sum_k x[m,k] * w[n,k] by AMX, for any number of tokens.  w: bitmap, nm or csr8; x: tiles
// [columns / 256, m / 16, steps of 256 columns, 16 dwords of columns, 16 tokens], zero past k and
// m; a step is the 64 bytes of columns that one tile row holds. One panel may have fewer tokens
// than 16, whose tiles are then smaller.
//
// Tile: kPanelRows rows of w, two left-hand tiles, times two panels of 16 tokens: four sums. The
// columns of a chunk, at most 256, are expanded to the stack as plain rows, which is what a
// left-hand tile reads; while the products of one chunk run, the vector ports expand the next.
//
// Spans: columns are taken in spans whose x stays in L2 (kSpanBytes), for all rows, with sums in
// the prepared memory between spans; the weights are read once for kMostPanels panels.
//
// Needs: mask bits past k clear (format check); x finite where w is zero, else the sum may be NaN.
//
// Tail: rows past the last keep whatever they held, and are not stored; values are never read past
// nnz.
//
// Cost (Emerald Rapids, at 2.3 GHz while tiles are multiplied, 2.75 otherwise): 16 cycles for 16
// rows x 16 tokens of a step; 6 cycles to expand 64 columns of bf16 (port 5: two kmov, two
// vpexpandw), measured 9 with fetching, so up to 16 tokens cost what expanding does.
//
// Tried for up to 16 tokens, 4096x4096, half kept, cold (6.2 ns for 64 columns of a row, one token
// 5.0): panels of 16 rows, chunks of 128 columns, four sums in turns: none; pages asked for early
// (pages.h), twice as far ahead, half of the lines, lines of the same row: 3 % to twice as slow;
// a chunk expanded at once, then multiplied: 0.9 of the time in cache, none cold.
#pragma once

#include "base/simd/amx.h"
#include "base/simd/avx512.h"
#include "base/simd/transpose16.h"
#include "ops/spmm/codes.h"
#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

inline constexpr int kPanelTokens = 16;
inline constexpr int kPanelRows = 2 * kTileRows;
inline constexpr int64_t kMostPanels = 32;      // that share one expansion
inline constexpr int64_t kSpanBytes = 1 << 20;  // of x, to stay in L2 for all rows
inline constexpr int kTilesToL2 = 2;

// The sums of two panels by kPanelRows rows, and of all rows and panels.
using TileSums = float[2][kTileRows][kPanelTokens];

// ---- where things are in the prepared memory

// `base` bytes of x, then what has to outlive a span.
struct TilePlan {
  int64_t panels;       // of 16 tokens
  int64_t group;        // panels that share one expansion
  int64_t columns;      // of a chunk of x
  int64_t row_bytes;    // of a tile of it
  int64_t chunk_bytes;  // of a panel's chunk
  int64_t span;         // columns, a multiple of a chunk's
  int64_t sums_at, values_at, bytes;

  TAMIS_INLINE TilePlan(const SpmmArgs& a, int64_t base, int64_t row_bytes_of,
                        int64_t chunk_bytes_of, int64_t columns_of = kStepColumns)
      : panels(ceil_div(a.m, kPanelTokens)),
        group(panels < kMostPanels ? panels : kMostPanels),
        columns(columns_of),
        row_bytes(row_bytes_of),
        chunk_bytes(chunk_bytes_of),
        span(kSpanBytes / (group * chunk_bytes)),
        sums_at(ceil_div(base, 64) * 64),
        values_at(sums_at),
        bytes(sums_at) {
    span = (span < 1 ? 1 : span) * columns;
    if (span >= a.w.cols) return;
    values_at += ceil_div(a.w.rows, kPanelRows) * group * static_cast<int64_t>(sizeof(TileSums));
    bytes = values_at + a.w.rows * 8;
  }
};

// ---- weights to the stack

TAMIS_INLINE int64_t tile_row_start(const MatrixView& w, int64_t row) {
  return w.format == Format::nm ? row * (w.cols / w.of * w.keep) : w.row_offsets[row];
}

// The mask of a word of csr8 whose `count` columns are at p. Up to 16 without a branch.
TAMIS_INLINE __m512i bits_of(const uint8_t* p, int count) {
  const auto mine = static_cast<__mmask8>(_bzhi_u32(0xff, count > 0 ? count : 0));
  const __m512i columns = _mm512_cvtepu8_epi64(_mm_maskz_loadu_epi8(mine, p));
  return _mm512_maskz_sllv_epi64(mine, _mm512_set1_epi64(1), columns);
}
TAMIS_INLINE uint64_t mask_of(const uint8_t* p, int count) {
  __m512i bits = _mm512_or_si512(bits_of(p, count), bits_of(p + 8, count - 8));
  for (int i = 16; i < count; i += 8) bits = _mm512_or_si512(bits, bits_of(p + i, count - i));
  return static_cast<uint64_t>(_mm512_reduce_or_epi64(bits));
}

TAMIS_INLINE void fetch_bytes(const void* begin, const void* end) {
  for (auto* p = static_cast<const char*>(begin); p < end; p += 64) {
    __builtin_prefetch(p, 0, kTilesToL2);
  }
}

// Expands the chunks of all row panels in order, one row at a time, ahead of the products.
template <class Unit>
struct TileFeed {
  using W = typename Unit::W;
  static constexpr int64_t kRowBytes = kStepColumns * static_cast<int64_t>(sizeof(W));

  const MatrixView& w;
  const W* values;
  int64_t words, row_end, first_column, last_column;
  int64_t* resume;  // next value of each row at first_column, or null where that is its start
  int64_t row;      // of the panel that `chunk` belongs to
  int count;        // of its rows that exist
  Chunks chunk;
  char* out;               // [kPanelRows][kRowBytes]
  int64_t at[kPanelRows];  // next value of each row
  int simple_words;        // of the chunk, all columns of them and no values that end soon; or 0
  const uint64_t* chunk_mask;             // of the chunk's first word in the panel's first row
  const char *fetch_values, *fetch_mask;  // of the next panel, in storage order
  int64_t fetch_value_bytes, fetch_mask_bytes;  // a row and chunk

  TAMIS_INLINE TileFeed(const MatrixView& w_of, int64_t row_begin, int64_t row_end_of,
                        int64_t first, int64_t last, int64_t* resume_of)
      : w(w_of),
        values(static_cast<const W*>(w_of.values)),
        words(mask_words(w_of.cols)),
        row_end(row_end_of),
        first_column(first),
        last_column(last),
        resume(resume_of),
        row(row_begin),
        count(0),
        chunk(w_of, first),
        out(nullptr) {
    begin_panel();
    fetch_panel();
  }

  // The first panel, which nothing else fetches.
  TAMIS_INLINE void fetch_panel() const {
    if (count == 0) return;
    const int64_t begin = tile_row_start(w, row), end = tile_row_start(w, row + count);
    fetch_bytes(values + begin, values + end);
    if (w.format == Format::csr8) {
      const uint8_t* columns = w.col_bytes + w.rows * words;
      fetch_bytes(columns + begin, columns + end);
    } else {
      fetch_bytes(w.mask + row * words, w.mask + (row + count) * words);
    }
  }

  TAMIS_INLINE void begin_panel() {
    count = static_cast<int>(row_end - row < kPanelRows ? row_end - row : kPanelRows);
    if (count <= 0) {
      count = 0;
      return;
    }
    chunk = Chunks(w, first_column);
    for (int r = 0; r < count; ++r) {
      at[r] = first_column > 0 ? resume[row + r] : tile_row_start(w, row + r);
    }
    const int64_t next = row + kPanelRows < w.rows ? row + kPanelRows : w.rows;
    const int64_t after = next + kPanelRows < w.rows ? next + kPanelRows : w.rows;
    const int64_t parts = ceil_div(w.cols, kStepColumns) * kPanelRows;
    const int64_t begin = tile_row_start(w, next), end = tile_row_start(w, after);
    const int64_t skipped = first_column / kStepColumns * kPanelRows;
    fetch_value_bytes = parts ? (end - begin) * static_cast<int64_t>(sizeof(W)) / parts : 0;
    fetch_values = reinterpret_cast<const char*>(values + begin) + skipped * fetch_value_bytes;
    const char* beside = reinterpret_cast<const char*>(w.mask + next * words);
    int64_t bytes = (after - next) * words * 8;
    if (w.format == Format::csr8) {
      beside = reinterpret_cast<const char*>(w.col_bytes + w.rows * words + begin);
      bytes = end - begin;
    }
    fetch_mask_bytes = parts ? bytes / parts : 0;
    fetch_mask = beside + skipped * fetch_mask_bytes;
    begin_chunk();
  }

  // After all rows of a chunk: the chunk that follows, of this panel or the next.
  TAMIS_INLINE void next() {
    chunk.next();
    if (chunk.more() && chunk.begin < last_column) return begin_chunk();
    for (int r = 0; r < count && resume; ++r) resume[row + r] = at[r];
    row += kPanelRows;
    begin_panel();
  }
  TAMIS_INLINE void begin_chunk() {
    // The last row's values are the nearest to the end.
    const bool simple = w.format != Format::csr8 && chunk.begin % 64 == 0 &&
                        (chunk.end % 64 == 0 || chunk.end == w.cols) &&
                        w.nnz - at[count - 1] >= kStepColumns + Unit::kReadsPast;
    simple_words = simple ? static_cast<int>(ceil_div(chunk.end - chunk.begin, 64)) : 0;
    chunk_mask = w.mask + row * words + chunk.begin / 64;
  }

  TAMIS_INLINE void fetch() {
    for (int64_t b = 0; b < fetch_value_bytes; b += 64) {
      __builtin_prefetch(fetch_values + b, 0, kTilesToL2);
    }
    __builtin_prefetch(fetch_mask, 0, kTilesToL2);
    fetch_values += fetch_value_bytes;
    fetch_mask += fetch_mask_bytes;
  }

  // kWhole: the chunk has all columns of its words, as all have without groups.
  template <bool kExact, bool kWhole>
  TAMIS_INLINE void expand(int r) {
    const int64_t first = chunk.begin / 64, count_words = ceil_div(chunk.end, 64) - first;
    const uint64_t* mask = w.mask + (row + r) * words + first;
    const W* p = values + at[r];
    char* to = out + r * kRowBytes;
    for (int64_t i = 0; i < count_words; ++i, to += 64 * sizeof(W)) {
      uint64_t mine = mask[i];
      if (!kWhole) mine &= bits_within(first + i, chunk.begin, chunk.end);
      Unit::template expand<kExact>(mine, p, to);
      p += simd::popcount(mine);
    }
    at[r] = p - values;
  }
  template <bool kExact>
  TAMIS_INLINE void expand_bytes(int r) {
    const uint8_t* counts = w.col_bytes + (row + r) * words;
    const uint8_t* columns = w.col_bytes + w.rows * words + at[r];
    const W* p = values + at[r];
    char* to = out + r * kRowBytes;
    for (int64_t word = chunk.begin / 64; word * 64 < chunk.end; ++word, to += 64 * sizeof(W)) {
      Unit::template expand<kExact>(mask_of(columns, counts[word]), p, to);
      columns += counts[word];
      p += counts[word];
    }
    at[r] = p - values;
  }

  // Rows [r, end) of a chunk of kWords words.
  template <int kWords>
  TAMIS_INLINE void expand_words(int r, int end) {
    const uint64_t* mask = chunk_mask + r * words;
    const W* const all = values;
    char* to = out + r * kRowBytes;
    const char *line = fetch_values, *mask_line = fetch_mask;
    const int64_t stride = words, value_bytes = fetch_value_bytes, mask_bytes = fetch_mask_bytes;
    for (; r < end; ++r, mask += stride, to += kRowBytes) {
      __builtin_prefetch(mask_line, 0, kTilesToL2);
      const W* p = all + at[r];
#pragma GCC unroll 4
      for (int i = 0; i < kWords; ++i) {
        // Few at a time, as a fetch that finds no buffer holds up all that follows; a few bytes
        // more than whole lines are mostly in the next row's first.
        for (int64_t b = 64 * i; b + 16 < value_bytes; b += 64 * kWords) {
          __builtin_prefetch(line + b, 0, kTilesToL2);
        }
        Unit::template expand<false>(mask[i], p, to + i * 64 * sizeof(W));
        p += simd::popcount(mask[i]);
      }
      at[r] = p - all;
      line += value_bytes;
      mask_line += mask_bytes;
    }
    fetch_values = line;
    fetch_mask = mask_line;
  }
  // A call of its own, whose registers the products do not share.
  __attribute__((noinline)) void expand_rows(int r, int end) {
    switch (simple_words) {
      case 1:
        return expand_words<1>(r, end);
      case 2:
        return expand_words<2>(r, end);
      case 3:
        return expand_words<3>(r, end);
      case 4:
        return expand_words<4>(r, end);
      default:
        for (; r < end; ++r) expand_row(r);
    }
  }
  TAMIS_INLINE void expand_row(int r) {
    fetch();
    const bool near_end = w.nnz - at[r] < kStepColumns + Unit::kReadsPast;
    if (w.format == Format::csr8) return near_end ? expand_bytes<true>(r) : expand_bytes<false>(r);
    const bool whole = chunk.begin % 64 == 0 && (chunk.end % 64 == 0 || chunk.end == w.cols);
    if (near_end || !whole) return near_end ? expand<true, false>(r) : expand<false, false>(r);
    expand<false, true>(r);
  }
};

// ---- the product

// Loads the sums of P panels from memory, or zeros them; and back.
template <int P>
TAMIS_INLINE void load_sums(const TileSums* sums, bool zero) {
  tiles_fence();
  if (zero) {
    _tile_zero(0);
    _tile_zero(2);
    if (P == 2) _tile_zero(1);
    if (P == 2) _tile_zero(3);
    return;
  }
  _tile_loadd(0, sums[0][0], kTileRowBytes);
  _tile_loadd(2, sums[0][1], kTileRowBytes);
  if (P == 2) _tile_loadd(1, sums[1][0], kTileRowBytes);
  if (P == 2) _tile_loadd(3, sums[1][1], kTileRowBytes);
}
template <int P>
TAMIS_INLINE void store_sums(TileSums* sums) {
  _tile_stored(0, sums[0][0], kTileRowBytes);
  _tile_stored(2, sums[0][1], kTileRowBytes);
  if (P == 2) _tile_stored(1, sums[1][0], kTileRowBytes);
  if (P == 2) _tile_stored(3, sums[1][1], kTileRowBytes);
}

// Adds `steps` steps of kPanelRows rows at w, times P panels at x, whose tile rows are x_row_bytes;
// chore(step) runs beside them. x is not kept in L1, where the weights are.
template <class Unit, int P, class Chore>
TAMIS_INLINE void multiply(const char* w, int64_t row_bytes, const char* x, int64_t x_row_bytes,
                           int64_t panel_bytes, int64_t steps, const Chore& chore) {
  for (int64_t s = 0; s < steps; ++s, w += kTileRowBytes, x += kTileRows * x_row_bytes) {
    chore(s);
    tiles_fence();
    _tile_loadd(4, w, row_bytes);
    _tile_stream_loadd(6, x, x_row_bytes);
    _tile_loadd(5, w + kTileRows * row_bytes, row_bytes);
    if (P == 2) _tile_stream_loadd(7, x + panel_bytes, x_row_bytes);
    Unit::template products<P>();
  }
}

// Sums that do not stay in f32 between chunks: integers, which become part of the f32 sums of two
// panels while the next two are multiplied.
struct NoPending {
  TAMIS_INLINE void some() {}
  TAMIS_INLINE void all() {}
};

// One chunk of kPanelRows rows, as multiply_pairs() takes it.
struct TileChunk {
  const char* w;
  const char* x;  // of the first panel
  int64_t steps;
  int64_t step, group;  // as Chunks counts
  int64_t row;
  bool first, load, store;  // begins the sums; the sums come from memory, and go there
};

template <class Unit, int P, class Chore>
TAMIS_INLINE void multiply_pair(const SpmmArgs& a, const Unit& unit, const TilePlan& plan,
                                const TileChunk& c, int64_t panel, int64_t p, TileSums* sums,
                                typename Unit::Pending& pending, const Chore& chore) {
  constexpr int64_t kRowBytes = TileFeed<Unit>::kRowBytes;
  if (Unit::kSumsStay ? c.load : true) load_sums<P>(sums, Unit::kSumsStay ? c.first : true);
  multiply<Unit, P>(c.w, kRowBytes, c.x + p * plan.chunk_bytes, plan.row_bytes, plan.chunk_bytes,
                    c.steps, [&](int64_t) __attribute__((always_inline)) {
                      chore();
                      pending.some();
                    });
  if constexpr (Unit::kSumsStay) {
    if (c.store) store_sums<P>(sums);
  } else {
    pending.all();
    store_sums<P>(pending.other());
    unit.hand_over(a, pending, c, panel + p, P, sums);
  }
}

// Rows [row_begin, row_end), tokens of panels [panel, panel + panels).
template <class Unit>
void multiply_tiles(const SpmmArgs& a, const MatrixView& w, const Unit& unit, const TilePlan& plan,
                    int64_t row_begin, int64_t row_end, int64_t panel, int64_t panels) {
  using Feed = TileFeed<Unit>;
  alignas(64) char weights[2][kPanelRows * Feed::kRowBytes];
  alignas(64) TileSums here[kMostPanels];
  auto* prepared = static_cast<char*>(const_cast<void*>(a.prepared));
  const bool spans = plan.span < w.cols;
  auto* kept = reinterpret_cast<TileSums*>(prepared + plan.sums_at);
  auto* resume = spans ? reinterpret_cast<int64_t*>(prepared + plan.values_at) : nullptr;
  // With one pair of panels the sums stay in their tiles from chunk to chunk.
  const bool stay = panels <= 2;
  if (w.cols == 0) __builtin_memset(here, 0, sizeof here);

  for (int64_t first = 0; first < w.cols || first == 0; first += plan.span) {
    const int64_t last = first + plan.span < w.cols ? first + plan.span : w.cols;
    Feed feed(w, row_begin, row_end, first, last, resume);
    int turn = 0;
    feed.out = weights[turn];
    if (w.cols > 0) feed.expand_rows(0, feed.count);
    for (int64_t row = row_begin; row < row_end; row += kPanelRows) {
      TileSums* sums = spans ? kept + row / kPanelRows * plan.group : here;
      typename Unit::Pending pending;
      for (Chunks chunk(w, first); chunk.more() && chunk.begin < last; chunk.next()) {
        const int64_t begin = chunk.begin / 64, in_step = begin % (kStepColumns / 64);
        TileChunk c{.w = weights[turn],
                    .x = unit.x + (chunk.step() * plan.panels + panel) * plan.chunk_bytes +
                         in_step * Unit::kWordSteps * kTileRows * plan.row_bytes,
                    .steps = (ceil_div(chunk.end, 64) - begin) * Unit::kWordSteps,
                    .step = chunk.step(),
                    .group = chunk.group,
                    .row = row,
                    .first = chunk.begin == 0,
                    .load = !stay || chunk.begin == first,
                    .store = !stay || chunk.end == last};
        turn ^= 1;
        feed.next();
        feed.out = weights[turn];
        int done = 0;
        int64_t passed = 0;
        const int64_t passes = ceil_div(panels, 2) * c.steps;
        const auto chore = [&]() __attribute__((always_inline)) {
          const int from = done;
          for (++passed; done < feed.count && done * passes < passed * feed.count;) ++done;
          feed.expand_rows(from, done);
        };
        int64_t p = 0;
        for (; p + 2 <= panels; p += 2) {
          multiply_pair<Unit, 2>(a, unit, plan, c, panel, p, sums + p, pending, chore);
        }
        if (p < panels) {
          multiply_pair<Unit, 1>(a, unit, plan, c, panel, p, sums + p, pending, chore);
        }
        feed.expand_rows(done, feed.count);
      }
      pending.all();
      if (last < w.cols) continue;
      const int rows = static_cast<int>(row_end - row < kPanelRows ? row_end - row : kPanelRows);
      for (int64_t i = 0; i < panels; ++i) {
        for (int r = 0; r < rows; r += kTileRows) {
          __m512i v[kTileRows];
#pragma GCC unroll 16
          for (int j = 0; j < kTileRows; ++j) v[j] = _mm512_load_si512(sums[i][r / kTileRows][j]);
          transpose(v);
          unit.store(a, v, row + r, rows - r < kTileRows ? rows - r : kTileRows,
                     (panel + i) * kPanelTokens);
        }
      }
    }
  }
}

template <class Unit>
TAMIS_INLINE void spmm_tiles(const SpmmArgs& a, const MatrixView& w, const Unit& unit,
                             const TilePlan& plan, int64_t row_begin, int64_t row_end) {
  const TileRegisters registers(plan.row_bytes);
  for (int64_t panel = 0; panel < plan.panels; panel += plan.group) {
    const int64_t left = plan.panels - panel;
    multiply_tiles<Unit>(a, w, unit, plan, row_begin, row_end, panel,
                         left < plan.group ? left : plan.group);
  }
}

}  // namespace
}  // namespace tamis
