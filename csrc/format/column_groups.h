// Columns of 16 rows put into groups of which every row keeps few, as sparse tensor cores take
// them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tamis {

// Groups of `width` columns (4 or 3) of which a row keeps at most `kept` (2 or 1).
struct GroupShape {
  int kept = 2, width = 4;
};

using ColumnGroup = std::array<int32_t, 4>;  // columns, -1 for none

// How far behind the last column of it and of all groups before it a column of a group may lie.
inline constexpr int32_t kGroupWindow = 2048;

// A place in the columns at which groups are told apart: the first `count` have columns before
// `end` alone, the others from `begin` on.
struct GroupWaist {
  int32_t begin = 0, end = 0;
  size_t multiple = 1;  // of it are the first ones, unless they are all
  size_t count = 0;     // found
};

// rows[c]: a bit for each of 16 rows that keeps column c; bank[c]: in which of eight banks it lies.
// Every column that some row keeps is in one group; groups are few, though not always as few as can
// be. They follow the columns, up to kGroupWindow, and few columns of each two neighbours, the
// first with the second, the third with the fourth, are in one bank. The same for the same rows.
// A waist of 960 columns costs random halves no more groups, one of 740 0.8 %, one of none 3 %; on
// either side of it are some half of them.
std::vector<ColumnGroup> group_columns(const std::vector<uint16_t>& rows,
                                       const std::vector<uint8_t>& bank, GroupShape shape,
                                       GroupWaist* waist = nullptr);

}  // namespace tamis
