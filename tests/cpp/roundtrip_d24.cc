// The law of d24: unpack(pack(bitmap or nm of w)) == w bit for bit; its groups are what they claim
// and few; and its check notices a record that contradicts itself.
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "format/column_groups.h"
#include "format/d24.h"
#include "packed_tiles.h"

namespace tamis::test {
namespace {

TEST(RoundTripD24, ComesBackBitForBit) {
  const Shape shapes[] = {{1, 1},    {5, 4, 2},  {32, 64},     {33, 65, 3},
                          {70, 130}, {100, 320}, {18, 1800, 4}};
  for_masks(shapes, [](const Weights& w, const MatrixView& canonical) {
    for (const int32_t panels : {1, 3}) {
      const PackedTiles packed(PackedFormat::d24, canonical, panels);
      const Status checked = d24::check(packed.view);
      ASSERT_TRUE(checked.ok()) << checked.text;
      expect_unpacked(
          w, [&](uint16_t* out, int64_t stride) { d24::unpack(packed.view, out, stride); });
    }
  });
}

// Groups beyond the fewest of 32 rows that keep so many columns each.
TEST(ColumnGroups32, KeepTwoAndAreFew) {
  std::mt19937_64 random(5);
  const struct {
    int cols, per_row;
    double most;
  } cases[] = {{1024, 512, 1.25}, {1800, 900, 1.24}, {1024, 410, 1.03}, {1024, 307, 1.01},
               {512, 512, 2.0},   {1024, 20, 1.001}, {1, 1, 4.0}};
  for (const auto& c : cases) {
    std::vector<uint32_t> rows(static_cast<size_t>(c.cols));
    std::vector<int> order(rows.size());
    std::iota(order.begin(), order.end(), 0);
    for (int r = 0; r < 32; ++r) {
      std::shuffle(order.begin(), order.end(), random);
      for (int i = 0; i < c.per_row; ++i) rows[static_cast<size_t>(order[i])] |= 1u << r;
    }
    std::vector<uint8_t> bank(rows.size());
    for (size_t i = 0; i < bank.size(); ++i) bank[i] = i % 8;
    const std::vector<ColumnGroup> groups = group_columns(rows, bank);
    std::vector<int> times(rows.size());
    int64_t met = 0;  // wavefronts of a matrix beyond one, of two neighbours
    for (size_t g = 0; g < groups.size(); ++g) {
      int kept[32] = {};
      for (const int32_t column : groups[g]) {
        if (column < 0) continue;
        ++times[static_cast<size_t>(column)];
        for (int r = 0; r < 32; ++r) kept[r] += rows[static_cast<size_t>(column)] >> r & 1;
      }
      ASSERT_LE(*std::max_element(kept, kept + 32), 2);
      if (g % 2 == 0 && g + 1 < groups.size()) {
        int in[8] = {};
        for (const size_t one : {g, g + 1}) {
          for (const int32_t column : groups[one]) {
            if (column >= 0) ++in[bank[static_cast<size_t>(column)]];
          }
        }
        met += *std::max_element(in, in + 8) - 1;
      }
    }
    for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(times[i], rows[i] != 0 ? 1 : 0) << i;
    const double fewest = std::max(c.cols / 4.0, c.per_row / 2.0);
    EXPECT_LE(static_cast<double>(groups.size()), std::max(1.0, c.most * fewest))
        << c.cols << " columns, " << c.per_row << " kept";
    const double pairs = std::max(1.0, static_cast<double>(groups.size() / 2));
    EXPECT_LE(static_cast<double>(met) / pairs, c.per_row < 300 ? 0.5 : 0.33)
        << c.cols << ", " << c.per_row;
  }
}

// The layout comment, by hand: row 25 keeps columns 2 and 70, row 0 column 2.
TEST(RoundTripD24, GoldenRecord) {
  std::vector<uint16_t> w(26 * 72);
  w[2] = 0x0002;
  w[25 * 72 + 2] = 0x1902;
  w[25 * 72 + 70] = 0x1970;
  const DenseView view{.data = w.data(), .dtype = DType::f16, .rows = 26, .cols = 72, .stride = 72};
  Packed bitmap;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap, .dtype = DType::f16}, &bitmap).ok());
  const PackedTiles packed(PackedFormat::d24, bitmap.view, 1);
  EXPECT_EQ((*packed.offsets)[1], 1u);
  ASSERT_EQ(packed.sizes.record_bytes, 2432);
  const auto* head = reinterpret_cast<const uint16_t*>(packed.records->data());
  const uint16_t* places = head + 128;
  const uint16_t* values = places + 64;
  // One group, its fuller column first, whose columns the others have, too; 70 lies at 70 ^ 0.
  const int c70 = 70 * 16;
  EXPECT_EQ(std::vector<int>(head, head + 16),
            (std::vector<int>{0xcccc, 0xcccc, 32, 32, 0xcccc, 0xcccc, c70, c70,  //
                              0xcccc, 0xcccc, c70, c70, 0xcccc, 0xcccc, c70, c70}));
  EXPECT_EQ(head[4 * 4 + 1], 0xcccc);  // row 9
  // Row 25, 9 of the second tile, is the second half of lanes 4 to 7: places 0 and 1 of group 0.
  EXPECT_EQ(places[4 * 2], 0xcccc);
  EXPECT_EQ(places[4 * 2 + 1], 0xccc4);
  EXPECT_EQ(values[0], 0x0002);
  EXPECT_EQ(values[512 + 4 * 8 + 2], 0x1902);
  EXPECT_EQ(values[512 + 4 * 8 + 3], 0x1970);
}

TEST(RoundTripD24, RefusesWhatItCannotHold) {
  const float w[4] = {1, 0, 2, 3};
  const DenseView view{.data = w, .rows = 1, .cols = 4, .stride = 4};
  Packed csr, floats;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::csr}, &csr).ok());
  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap}, &floats).ok());
  p24::Packed packed;
  EXPECT_STREQ(d24::pack(csr.view, 1, &packed).text, "d24: format: got csr, wanted bitmap or nm");
  EXPECT_STREQ(d24::pack(floats.view, 1, &packed).text, "d24: dtype: got f32, wanted bf16 or f16");
  const MatrixView wide{.format = Format::bitmap, .rows = 1, .cols = 1816, .dtype = DType::f16};
  EXPECT_STREQ(d24::pack(wide, 1, &packed).text, "d24: panels: got 1, wanted at least 2");
}

TEST(RoundTripD24, CheckNoticesWhatContradictsItself) {
  std::mt19937_64 random(7);
  const PackSpec spec{.format = Format::bitmap, .dtype = DType::bf16};
  const Weights w = make_weights(random, {40, 200}, DType::bf16, spec, Keep::half, true);
  Packed bitmap;
  ASSERT_TRUE(pack_guarded(w.view, spec, &bitmap).ok());
  PackedTiles packed(PackedFormat::d24, bitmap.view, 1);
  ASSERT_TRUE(d24::check(packed.view).ok());
  (*packed.offsets)[1] ^= 0x40000000u;
  EXPECT_FALSE(d24::check(packed.view).ok());
  (*packed.offsets)[1] ^= 0x40000000u;
  auto* record = reinterpret_cast<uint8_t*>(packed.records->data());
  for (int lane = 0; lane < 32; ++lane) {
    for (uint8_t* places : {record + lane * 8, record + 256 + lane * 4}) {
      const uint8_t right = *places;
      *places = 0x44u | 1u;  // places that do not rise
      EXPECT_FALSE(d24::check(packed.view).ok()) << "places " << lane;
      *places = right;
    }
    record[lane * 8 + 5] ^= 0x80;  // a column beyond the panel
    EXPECT_FALSE(d24::check(packed.view).ok()) << "column " << lane;
    record[lane * 8 + 5] ^= 0x80;
    record[lane * 8 + 6] ^= 1;  // one that is none
    EXPECT_FALSE(d24::check(packed.view).ok()) << "column " << lane;
    record[lane * 8 + 6] ^= 1;
  }
  EXPECT_TRUE(d24::check(packed.view).ok());
}

// Those that leave 64 tokens room, and share work over 132 SMs.
TEST(RoundTripD24, Panels) {
  EXPECT_EQ(d24::panels_of(14336, 4096), 3);
  EXPECT_EQ(d24::panels_of(4096, 4096), 4);
  EXPECT_EQ(d24::panels_of(4096, 14336), 8);
  EXPECT_EQ(d24::panels_of(1024, 4096), 4);
  EXPECT_EQ(d24::panels_of(1, 1), 1);
  EXPECT_EQ(d24::panels_of(64, 1808), 1);
  EXPECT_EQ(d24::panels_of(64, 1809), 2);
  for (const int64_t cols : {1, 1000, 5000, 20000, 300000}) {
    for (const int64_t rows : {1, 500, 70000}) {
      EXPECT_LE(p24::panel_cols(cols, d24::panels_of(rows, cols)), d24::kMaxPanelCols);
    }
  }
}

}  // namespace
}  // namespace tamis::test
