// Rows of a matrix whose columns are put together (p24), and what a row keeps of four columns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/numeric.h"
#include "format/column_groups.h"
#include "format/masked.h"
#include "format/p24.h"

namespace tamis {

// A row tile, densely: bits and values of a panel's columns.
struct GroupedRows {
  static constexpr int64_t kRows = t16::kTileRows;
  std::vector<uint16_t> rows;    // [columns] a bit for each row
  std::vector<uint16_t> values;  // [columns, kRows]
  std::vector<uint8_t> banks;    // [columns] of shared memory, of 16 bytes

  GroupedRows(const MatrixView& a, int64_t tile, int64_t begin, int64_t end)
      : rows(static_cast<size_t>(end - begin)),
        values(static_cast<size_t>((end - begin) * kRows)),
        banks(static_cast<size_t>(end - begin)) {
    for (size_t c = 0; c < banks.size(); ++c) {
      banks[c] = static_cast<uint8_t>(p24::byte_of_column(static_cast<uint32_t>(c)) /
                                      p24::kColumnBytes % 8);
    }
    const int64_t words = mask_words(a.cols);
    const auto* all = static_cast<const uint16_t*>(a.values);
    for (int64_t r = 0; r < std::min(kRows, a.rows - tile * kRows); ++r) {
      const int64_t row = tile * kRows + r;
      const uint64_t* mask = a.mask + row * words;
      const uint16_t* value = all + first_value(a, row);
      for (int64_t w = 0; 64 * w < end; ++w) {
        for (uint64_t bits = mask[w]; bits != 0; bits &= bits - 1, ++value) {
          const int64_t column = 64 * w + __builtin_ctzll(bits) - begin;
          if (column < 0 || column >= end - begin) continue;
          uint16_t& kept = rows[static_cast<size_t>(column)];
          kept = static_cast<uint16_t>(kept | 1u << r);
          values[static_cast<size_t>(column * kRows + r)] = *value;
        }
      }
    }
  }
};

// The column of a slot of a group: its own, or one that another slot has.
inline int32_t column_of_slot(const ColumnGroup& group, int slot) {
  while (group[static_cast<size_t>(slot)] < 0) --slot;
  return group[static_cast<size_t>(slot)];
}

// Two values of a group of four columns and their places, in order; a zero is at 0 or 3.
struct TwoOfFour {
  uint32_t place[2] = {0, 3};
  uint16_t value[2] = {0, 0};

  // What differs from places 0 and 3, which groups that fill up a record have.
  uint32_t flips() const { return place[0] | (place[1] ^ 3u) << 2; }
};

// What row r keeps of them.
inline TwoOfFour two_of_four(const GroupedRows& tile, const ColumnGroup& columns, int64_t r) {
  TwoOfFour two;
  int kept = 0;
  for (int slot = 0; slot < 4; ++slot) {
    if (columns[slot] < 0 || (tile.rows[columns[slot]] >> r & 1) == 0) continue;
    const uint16_t v = tile.values[columns[slot] * GroupedRows::kRows + r];
    if (kept == 0 && slot == 3) {  // beside another place, in order
      two.value[1] = v;
    } else {
      two.place[kept] = static_cast<uint32_t>(slot);
      two.value[kept] = v;
    }
    ++kept;
  }
  return two;
}

}  // namespace tamis
