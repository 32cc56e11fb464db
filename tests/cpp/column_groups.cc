// Columns put together for 16 rows: groups keep what they may, hold every column once and are few.
#include "format/column_groups.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <vector>

#include "format/p24.h"

namespace tamis::test {
namespace {

// `per_row` columns of each of 16 rows, at random.
std::vector<uint16_t> rows_of_columns(std::mt19937_64& random, int cols, int per_row) {
  std::vector<uint16_t> rows(static_cast<size_t>(cols));
  std::vector<int> order(rows.size());
  std::iota(order.begin(), order.end(), 0);
  for (int r = 0; r < 16; ++r) {
    for (int i = 0; i < per_row; ++i) {
      std::swap(order[i], order[i + static_cast<int>(random() % static_cast<size_t>(cols - i))]);
      rows[order[i]] |= static_cast<uint16_t>(1u << r);
    }
  }
  return rows;
}

// Groups beyond the fewest: of rows that keep half 1.0 % of 4096 columns and 4 % of 1024; of rows
// that keep 0.3, in groups of three, none and 1 %.
TEST(ColumnGroups, KeepWhatTheyMayAndAreFew) {
  std::mt19937_64 random(5);
  const struct {
    int cols, per_row;
    GroupShape shape;
    double most;  // groups, of the fewest
  } cases[] = {{4096, 2048, {2, 4}, 1.02}, {1024, 512, {2, 4}, 1.06},  {1024, 460, {2, 4}, 1.03},
               {1024, 1024, {2, 4}, 2.0},  {4096, 1228, {1, 3}, 1.01}, {1024, 307, {1, 3}, 1.03},
               {4096, 205, {1, 3}, 1.0},   {1024, 1024, {1, 3}, 3.0},  {1, 1, {2, 4}, 4.0}};
  for (const auto& c : cases) {
    const std::vector<uint16_t> rows = rows_of_columns(random, c.cols, c.per_row);
    std::vector<uint8_t> bank(rows.size());
    for (size_t i = 0; i < bank.size(); ++i) bank[i] = i % 8;
    const std::vector<ColumnGroup> groups = group_columns(rows, bank, c.shape);
    int32_t last = 0;
    std::vector<int> times(rows.size());
    for (const ColumnGroup& group : groups) {
      int kept[16] = {};
      for (int i = 0; i < 4; ++i) {
        if (group[i] < 0) continue;
        ASSERT_LT(i, c.shape.width);
        last = std::max(last, group[i]);
        ++times[group[i]];
        for (int r = 0; r < 16; ++r) kept[r] += rows[group[i]] >> r & 1;
      }
      ASSERT_LE(*std::max_element(kept, kept + 16), c.shape.kept);
      for (const int32_t column : group) {
        ASSERT_TRUE(column < 0 || column + kGroupWindow > last) << "group behind its window";
      }
    }
    for (size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(times[i], rows[i] != 0) << "column " << i;
    // Of random halves two neighbours' eight columns meet in a bank 1.21 times, 2.6 without choice;
    // of groups of three 1.02 times.
    int wavefronts = 0;
    for (size_t i = 0; i + 1 < groups.size(); i += 2) {
      int in[8] = {};
      for (const ColumnGroup& group : {groups[i], groups[i + 1]}) {
        for (const int32_t column : group) in[column < 0 ? 0 : bank[column]] += column >= 0;
      }
      wavefronts += *std::max_element(in, in + 8);
    }
    if (c.cols == 4096) {
      const double most = c.shape.width == 4 ? 1.25 : 1.05;
      EXPECT_LE(wavefronts, most * static_cast<double>(groups.size()) / 2);
    }
    const int fewest = (c.cols + c.shape.width - 1) / c.shape.width;
    EXPECT_LE(static_cast<double>(groups.size()), c.most * fewest)
        << c.cols << " columns, " << c.per_row << " a row";
    EXPECT_EQ(groups, group_columns(rows, bank, c.shape));
  }
}

// Blocks that share a panel have nearly as many groups each.
TEST(ColumnGroups, AWaistHalvesThem) {
  std::mt19937_64 random(9);
  for (const GroupShape shape : {GroupShape{2, 4}, GroupShape{1, 3}}) {
    const std::vector<uint16_t> rows =
        rows_of_columns(random, 4096, shape.width == 4 ? 2048 : 1228);
    std::vector<uint8_t> bank(rows.size());
    for (size_t i = 0; i < bank.size(); ++i) bank[i] = i % 8;
    GroupWaist waist{static_cast<int32_t>(p24::half_begin(4096)),
                     static_cast<int32_t>(p24::half_end(4096)), 16};
    const std::vector<ColumnGroup> groups = group_columns(rows, bank, shape, &waist);
    EXPECT_NEAR(static_cast<double>(waist.count) / static_cast<double>(groups.size()), 0.5, 0.04);
    for (size_t i = 0; i < groups.size(); ++i) {
      for (const int32_t column : groups[i]) {
        EXPECT_TRUE(column < 0 || (i < waist.count ? column < waist.end : column >= waist.begin));
      }
    }
  }
}

}  // namespace
}  // namespace tamis::test
