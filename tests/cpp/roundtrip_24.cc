// The law of p24 and d24: unpack(pack(bitmap or nm of w)) == w bit for bit; and their checks notice
// a record that contradicts itself.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "format/d24.h"
#include "format/p24.h"
#include "packed_tiles.h"

namespace tamis::test {
namespace {

struct Form {
  std::string name;
  PackedFormat format;
  Status (*pack)(const MatrixView&, int32_t, p24::Packed*);
  Status (*check)(const T16View&);
  void (*unpack)(const T16View&, uint16_t*, int64_t);
  int64_t panel_cols;  // at most
};

class RoundTrip24 : public testing::TestWithParam<Form> {};

TEST_P(RoundTrip24, ComesBackBitForBit) {
  const Form& form = GetParam();
  const Shape shapes[] = {{1, 1},    {5, 4, 2},  {32, 64},      {33, 65, 3},
                          {70, 130}, {100, 320}, {18, 1800, 4}, {18, 2100, 4}};
  for_masks(shapes, [&](const Weights& w, const MatrixView& canonical) {
    for (const int64_t panels : {ceil_div(w.view.cols, form.panel_cols), int64_t{3}}) {
      const PackedTiles packed(form.format, canonical, static_cast<int32_t>(panels));
      const Status checked = form.check(packed.view);
      ASSERT_TRUE(checked.ok()) << checked.text;
      expect_unpacked(
          w, [&](uint16_t* out, int64_t stride) { form.unpack(packed.view, out, stride); });
    }
  });
}

TEST_P(RoundTrip24, RefusesWhatItCannotHold) {
  const Form& form = GetParam();
  const float w[4] = {1, 0, 2, 3};
  const DenseView view{.data = w, .rows = 1, .cols = 4, .stride = 4};
  Packed csr, floats;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::csr}, &csr).ok());
  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap}, &floats).ok());
  const MatrixView wide{
      .format = Format::bitmap, .rows = 1, .cols = form.panel_cols + 8, .dtype = DType::f16};
  p24::Packed packed;
  EXPECT_EQ(form.pack(csr.view, 1, &packed).text,
            form.name + ": format: got csr, wanted bitmap or nm");
  EXPECT_EQ(form.pack(floats.view, 1, &packed).text,
            form.name + ": dtype: got f32, wanted bf16 or f16");
  EXPECT_EQ(form.pack(wide, 1, &packed).text, form.name + ": panels: got 1, wanted at least 2");
}

INSTANTIATE_TEST_SUITE_P(Forms, RoundTrip24,
                         testing::Values(Form{"p24", PackedFormat::p24, &p24::pack, &p24::check,
                                              &p24::unpack, p24::kMaxPanelCols},
                                         Form{"d24", PackedFormat::d24, &d24::pack, &d24::check,
                                              &d24::unpack, d24::kMaxPanelCols}),
                         [](const auto& info) { return info.param.name; });

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
