// Columns of 16 rows put into groups of which every row keeps few, as sparse tensor cores take
// them.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace tamis {

// Groups of `width` columns (4 or 3) of which a row keeps at most `kept` (2 or 1).
struct GroupShape {
  int kept = 2, width = 4;
};

using ColumnGroup = std::array<int32_t, 4>;  // columns, -1 for none

// rows[c]: a bit for each of 16 rows that keeps column c. Every column that some row keeps is in
// one group; groups are few, though not always as few as can be. The same for the same rows.
std::vector<ColumnGroup> group_columns(const std::vector<uint16_t>& rows, GroupShape shape);

// Orders groups so that few of the columns of each two neighbours, the first with the second, the
// third with the fourth, are in one of eight banks, of which bank[c] is that of column c.
void spread_groups(const std::vector<uint8_t>& bank, std::vector<ColumnGroup>* groups);

}  // namespace tamis
