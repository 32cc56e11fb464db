// The law of p24: unpack(pack(bitmap or nm of w)) == w bit for bit; its groups are what they claim
// and few; and its check notices a record that contradicts itself.
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "format/column_groups.h"
#include "format/p24.h"
#include "packed_tiles.h"

namespace tamis::test {
namespace {

TEST(RoundTripP24, ComesBackBitForBit) {
  const Shape shapes[] = {{1, 1},    {5, 4, 2},  {32, 64},     {33, 65, 3},
                          {70, 130}, {100, 320}, {18, 2100, 4}};
  for_masks(shapes, [](const Weights& w, const MatrixView& canonical) {
    for (const int32_t panels : {1, 3}) {
      const PackedTiles packed(PackedFormat::p24, canonical, panels);
      const Status checked = p24::check(packed.view);
      ASSERT_TRUE(checked.ok()) << checked.text;
      expect_unpacked(
          w, [&](uint16_t* out, int64_t stride) { p24::unpack(packed.view, out, stride); });
    }
  });
}

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

// Masks whose columns come in bands, far apart or in the middle alone: records lie within their
// halves all the same, which p24::check looks at.
TEST(RoundTripP24, BandsKeepToHalves) {
  std::mt19937_64 random(8);
  constexpr int64_t kRows = 40, kCols = 4096;
  const std::vector<std::vector<std::pair<int, int>>> bands = {{{0, 100}, {4000, 4096}},
                                                               {{2000, 2100}},
                                                               {{0, 40}},
                                                               {{4090, 4096}},
                                                               {{1500, 2600}},
                                                               {{0, 1}, {1600, 1601}, {3200, 3201}},
                                                               {{0, 1567}},
                                                               {{1568, 4096}},
                                                               {{2528, 4096}},
                                                               {}};
  for (const auto& kept : bands) {
    for (const int of_ten : {3, 5, 9}) {
      std::vector<uint16_t> w(kRows * kCols);
      for (const auto& [from, to] : kept) {
        for (int64_t r = 0; r < kRows; ++r) {
          for (int c = from; c < to; ++c) {
            if (static_cast<int>(random() % 10) < of_ten) w[r * kCols + c] = 0x3f80;
          }
        }
      }
      const DenseView view{
          .data = w.data(), .dtype = DType::bf16, .rows = kRows, .cols = kCols, .stride = kCols};
      Packed bitmap;
      ASSERT_TRUE(
          pack_guarded(view, {.format = Format::bitmap, .dtype = DType::bf16}, &bitmap).ok());
      const PackedTiles packed(PackedFormat::p24, bitmap.view, 1);
      const Status checked = p24::check(packed.view);
      ASSERT_TRUE(checked.ok()) << checked.text;
      std::vector<uint16_t> back(w.size(), 1);
      p24::unpack(packed.view, back.data(), kCols);
      EXPECT_EQ(back, w);
    }
  }
}

TEST(RoundTripP24, TakesFewerBytesOfBothKinds) {
  std::mt19937_64 random(6);
  for (const bool half : {true, false}) {
    std::vector<uint16_t> w(64 * 1024);
    for (uint16_t& v : w) v = random() % 10 < (half ? 5 : 3) ? 0x3f80 : 0;
    const DenseView view{
        .data = w.data(), .dtype = DType::bf16, .rows = 64, .cols = 1024, .stride = 1024};
    Packed bitmap;
    ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap, .dtype = DType::bf16}, &bitmap).ok());
    const PackedTiles packed(PackedFormat::p24, bitmap.view, 1);
    EXPECT_EQ(packed.sizes.max_record_bytes, half ? p24::kPairBytes : p24::kTripleBytes);
    EXPECT_LE(packed.sizes.record_bytes, (half ? 1.42 : 0.98) * 64 * 1024);
  }
}

// The layout comment, by hand: row 9 keeps columns 2 and 70, row 0 column 2.
TEST(RoundTripP24, GoldenRecord) {
  std::vector<uint16_t> w(10 * 72);
  w[2] = 0x0002;
  w[9 * 72 + 2] = 0x0902;
  w[9 * 72 + 70] = 0x0970;
  const DenseView view{.data = w.data(), .dtype = DType::f16, .rows = 10, .cols = 72, .stride = 72};
  Packed bitmap;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap, .dtype = DType::f16}, &bitmap).ok());
  const PackedTiles packed(PackedFormat::p24, bitmap.view, 1);
  EXPECT_EQ((*packed.offsets)[1], 1u);
  ASSERT_EQ(packed.sizes.max_record_bytes, p24::kPairBytes);  // as many records of either kind
  const auto* head = reinterpret_cast<const uint16_t*>(packed.records->data());
  const auto* values = head + 128;
  // One group, its fuller column first, whose columns the others have, too; 70 lies at 70 ^ 0. Lane
  // 0 says that the last chunk is 1, lane 8 would say that the first one is not 0.
  const int c70 = 70 * 16;
  EXPECT_EQ(std::vector<int>(head, head + 16),
            (std::vector<int>{0xcccc, 0xcccc, 32 + 1, 32, 0xcccc, 0xcccc, c70, c70,  //
                              0xcccc, 0xcccc, c70, c70, 0xcccc, 0xcccc, c70, c70}));
  EXPECT_EQ(head[8 * 4 + 2], 32);
  // Row 9 is the second half of lanes 4 to 7: places 0 and 1 of group 0, and 0 and 3 elsewhere.
  EXPECT_EQ(head[4 * 4 + 1], 0xccc4);
  EXPECT_EQ(values[0], 0x0002);
  EXPECT_EQ(values[4 * 8 + 2], 0x0902);
  EXPECT_EQ(values[4 * 8 + 3], 0x0970);
}

TEST(RoundTripP24, RefusesWhatItCannotHold) {
  const float w[4] = {1, 0, 2, 3};
  const DenseView view{.data = w, .rows = 1, .cols = 4, .stride = 4};
  Packed csr, floats;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::csr}, &csr).ok());
  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap}, &floats).ok());
  p24::Packed packed;
  EXPECT_STREQ(p24::pack(csr.view, 1, &packed).text, "p24: format: got csr, wanted bitmap or nm");
  EXPECT_STREQ(p24::pack(floats.view, 1, &packed).text, "p24: dtype: got f32, wanted bf16 or f16");
  const MatrixView wide{.format = Format::bitmap, .rows = 1, .cols = 4104, .dtype = DType::f16};
  EXPECT_STREQ(p24::pack(wide, 1, &packed).text, "p24: panels: got 1, wanted at least 2");
}

TEST(RoundTripP24, CheckNoticesWhatContradictsItself) {
  std::mt19937_64 random(7);
  for (const Keep keep : {Keep::half, Keep::few}) {
    const PackSpec spec{.format = Format::bitmap, .dtype = DType::bf16};
    const Weights w = make_weights(random, {40, 200}, DType::bf16, spec, keep, true);
    Packed bitmap;
    ASSERT_TRUE(pack_guarded(w.view, spec, &bitmap).ok());
    PackedTiles packed(PackedFormat::p24, bitmap.view, 1);
    ASSERT_TRUE(p24::check(packed.view).ok());
    (*packed.offsets)[1] ^= 0x40000000u;
    EXPECT_FALSE(p24::check(packed.view).ok());
    (*packed.offsets)[1] ^= 0x40000000u;
    const bool pairs = packed.sizes.max_record_bytes == p24::kPairBytes;
    auto* record = reinterpret_cast<uint8_t*>(packed.records->data());
    for (int lane = 0; lane < 32; ++lane) {
      uint8_t& places = record[lane * (pairs ? 8 : 4)];
      const uint8_t right = places;
      places = pairs ? 0x44u | 1u : 0xff;  // a place that does not rise; one that is none
      EXPECT_FALSE(p24::check(packed.view).ok()) << "places " << lane;
      places = right;
      uint8_t& column = record[pairs ? lane * 8 + 5 : 128 + lane * 6 + 1];
      column ^= 0x80;  // beyond the panel
      EXPECT_FALSE(p24::check(packed.view).ok()) << "column " << lane;
      column ^= 0x80;
    }
    for (int bit = 0; bit < p24::kChunkBits; ++bit) {
      const int lane = p24::chunk_lane(bit);
      uint8_t& last = record[pairs ? lane * 8 + 4 : 128 + (lane / 4 * 3 + lane % 4) * 8];
      last ^= 1;  // another last chunk
      EXPECT_FALSE(p24::check(packed.view).ok()) << "chunk " << bit;
      last ^= 1;
    }
    EXPECT_TRUE(p24::check(packed.view).ok());
  }
}

}  // namespace
}  // namespace tamis::test
