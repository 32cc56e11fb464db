// Whose queries a block of prefill_wgmma.cuh takes, and which tokens they may see.
#pragma once

#include "base/cuda/dev.h"
#include "ops/prefill_attention/prefill_limits.cuh"
#include "ops/prefill_attention/prefill_params.h"
#include "ops/prefill_attention/prefill_rows.cuh"

namespace tamis {

// Which heads and which tile of queries a work is.
struct PrefillTile {
  int32_t batch, head, tile;  // head: the first

  TAMIS_DEVICE PrefillTile(const PrefillGroupParams& g, int32_t work) {
    const int32_t section = quotient(work, g.by_section);
    const int32_t within = work - section * g.together * g.tiles;
    const int32_t from_last = quotient(within, g.by_together);
    tile = g.tiles - 1 - from_last;  // later ones see more
    const int32_t y = (section - from_last) * g.together + within;
    batch = quotient(y, g.by_blocks);
    head = y * g.heads_of_block - batch * g.p.heads;
  }
  // Of row i of the tile.
  TAMIS_DEVICE int32_t head_of_row(const PrefillGroupParams& g, int32_t i) const {
    return g.heads_of_block == 1 ? head : head + i / 64;
  }
};

// Its queries: slots [first, last) of the list of rows, of which those below 0 do not exist.
struct PrefillWork : PrefillTile {
  int32_t row = 0;  // of the pattern's blocks
  int32_t first, last;

  TAMIS_DEVICE PrefillWork(const PrefillGroupParams& g, int32_t work) : PrefillTile(g, work) {
    const PrefillParams& p = g.p;
    const int32_t queries = g.queries;
    first = queries * tile;
    int32_t slots = p.queries;
    if (p.block > 0) {
      row = p.first / p.block + tile / p.block_tiles;
      first = row * p.block + queries * (tile % p.block_tiles) - p.first;
      const int32_t limit = (row + 1) * p.block - p.first;
      slots = limit < p.queries ? limit : p.queries;
    } else if (p.rows != nullptr) {
      slots = p.row_count ? dev::load_global(p.row_count + batch) : p.row_stride;
      slots = clamped(slots, 0, p.row_stride);
    }
    last = first + queries < slots ? first + queries : slots;
  }
  TAMIS_DEVICE bool any() const { return (first > 0 ? first : 0) < last; }
  TAMIS_DEVICE int32_t query(const PrefillParams& p, int32_t slot) const {
    if (p.rows == nullptr) return slot;
    return clamped(dev::load_global(p.rows + int64_t{batch} * p.row_stride + slot), 0,
                   p.queries - 1);
  }
  // Of row i of the tile; -1: there is none.
  TAMIS_DEVICE int32_t query_of_row(const PrefillGroupParams& g, int32_t i) const {
    const int32_t slot = first + (g.heads_of_block == 1 ? i : i % 64);
    return slot >= 0 && slot < last ? query(g.p, slot) : -1;
  }
};

// The tokens that a work's queries may see, as entries of a list, tile by tile. kBlocks: of blocks
// too.
template <bool kBlocks>
struct PrefillEntries {
  const PrefillParams& p;
  int32_t batch, low, high;  // tokens of the first and the last query
  int32_t count;
  const int32_t* list;  // of columns, or of the row's blocks
  int32_t base, sink, window;
  int32_t first = 0, end = 0;
  int32_t oldest = 0, newest = 0, own = 0;  // own: this lane's token

  TAMIS_DEVICE PrefillEntries(const PrefillGroupParams& g, const PrefillWork& work)
      : p(g.p), batch(work.batch), count(g.p.tokens), list(nullptr) {
    const int32_t pattern = quotient(work.head, g.by_pattern);
    low = p.first + work.query(p, work.first > 0 ? work.first : 0);
    high = p.first + work.query(p, work.last - 1);
    base = p.begin ? dev::load_global(p.begin + batch) : 0;
    sink = p.sink ? dev::load_global(p.sink + pattern) : 0;
    window = p.window ? dev::load_global(p.window + pattern) : 0;
    if (kBlocks && p.block > 0) {
      const int32_t* offsets = p.offsets + int64_t{pattern} * (p.blocks + 1) + work.row;
      const int32_t from = clamped(dev::load_global(offsets), 0, p.block_stride);
      const int32_t to = clamped(dev::load_global(offsets + 1), from, p.block_stride);
      list = p.block_columns + int64_t{pattern} * p.block_stride + from;
      count = (to - from) * p.block;
      // The last block may be shorter.
      if (to > from && dev::load_global(list + (to - from) - 1) >= p.blocks - 1) {
        count -= p.blocks * p.block - p.tokens;
      }
    } else if (p.columns != nullptr) {
      list = p.columns + int64_t{batch} * p.column_stride;
      count = p.column_count ? dev::load_global(p.column_count + batch) : p.column_stride;
      count = clamped(count, 0, p.tokens > 0 ? p.column_stride : 0);
    }
  }
  TAMIS_DEVICE int32_t token(int32_t entry) const {
    if (kBlocks && p.block > 0) {
      const int32_t of = entry / p.block;
      const int32_t column = clamped(dev::load_global(list + of), 0, p.blocks - 1);
      entry += (column - of) * p.block;
    } else if (list != nullptr) {
      entry = dev::load_global(list + entry);
    }
    return clamped(entry, 0, p.tokens - 1);
  }
  // The tile at `first` or the next that some query may see; false if there is none.
  TAMIS_DEVICE bool find(int32_t row) {
    for (;; first += kPrefillGroupKeys) {
      if (first >= count) return false;
      end = first + kPrefillGroupKeys < count ? first + kPrefillGroupKeys : count;
      oldest = token(first);
      newest = token(end - 1);
      own = token(first + row < end ? first + row : end - 1);
      if (p.causal && oldest > high) return false;
      const bool unseen = newest < base || (window > 0 && oldest >= sink && newest <= low - window);
      if (!unseen) return true;
    }
  }
  TAMIS_DEVICE bool cut() const {
    return end - first < kPrefillGroupKeys || (p.causal && newest > low) || oldest < base ||
           (window > 0 && newest >= sink && oldest <= high - window);
  }
};

}  // namespace tamis
