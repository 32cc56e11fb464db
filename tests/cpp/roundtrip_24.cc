// The law of p24 and r24: unpack(pack(bitmap or nm of w)) == w bit for bit; and their checks notice
// a record that contradicts itself.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "format/p24.h"
#include "format/r24.h"
#include "packed_tiles.h"

namespace tamis::test {
namespace {

TEST(RoundTripP24, ComesBackBitForBit) {
  const Shape shapes[] = {{1, 1},    {5, 4, 2},  {32, 64},      {33, 65, 3},
                          {70, 130}, {100, 320}, {18, 1800, 4}, {18, 2100, 4}};
  for_masks(shapes, [&](const Weights& w, const MatrixView& canonical) {
    for (const int32_t panels : {1, 3}) {
      const PackedTiles packed(PackedFormat::p24, canonical, panels);
      const Status checked = p24::check(packed.view);
      ASSERT_TRUE(checked.ok()) << checked.text;
      expect_unpacked(
          w, [&](uint16_t* out, int64_t stride) { p24::unpack(packed.view, out, stride); });
    }
  });
}

TEST(RoundTripR24, ComesBackBitForBit) {
  const Shape shapes[] = {{1, 1}, {5, 4, 2}, {16, 64}, {17, 65, 3}, {33, 130}, {100, 320}};
  for_masks(shapes, [&](const Weights& w, const MatrixView& canonical) {
    const PackedTiles packed(PackedFormat::r24, canonical);
    const Status checked = r24::check(packed.view);
    ASSERT_TRUE(checked.ok()) << checked.text;
    expect_unpacked(w,
                    [&](uint16_t* out, int64_t stride) { r24::unpack(packed.view, out, stride); });
  });
}

TEST(RoundTrip24, RefuseWhatTheyCannotHold) {
  const float w[4] = {1, 0, 2, 3};
  const DenseView view{.data = w, .rows = 1, .cols = 4, .stride = 4};
  Packed csr, floats;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::csr}, &csr).ok());
  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap}, &floats).ok());
  const MatrixView wide{
      .format = Format::bitmap, .rows = 1, .cols = p24::kMaxPanelCols + 8, .dtype = DType::f16};
  p24::Packed packed;
  EXPECT_STREQ(p24::pack(csr.view, 1, &packed).text, "p24: format: got csr, wanted bitmap or nm");
  EXPECT_STREQ(p24::pack(floats.view, 1, &packed).text, "p24: dtype: got f32, wanted bf16 or f16");
  EXPECT_STREQ(p24::pack(wide, 1, &packed).text, "p24: panels: got 1, wanted at least 2");
  t16::Sizes sizes;
  uint32_t offset = 0;
  EXPECT_STREQ(r24::pack_sizes(csr.view, &sizes).text, "r24: format: got csr, wanted bitmap or nm");
  EXPECT_STREQ(r24::pack(floats.view, &offset, nullptr).text,
               "r24: dtype: got f32, wanted bf16 or f16");
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

// The layout comment, by hand: row 9 keeps columns 1, 2 and 70, row 6 columns 12 to 15, row 1
// columns 16, 19, 22 and 23, so that every code but that of the first two columns, 0, occurs.
TEST(RoundTripR24, GoldenRecord) {
  std::vector<uint16_t> w(10 * 72);
  w[9 * 72 + 1] = 0x0901;
  w[9 * 72 + 2] = 0x0902;
  w[9 * 72 + 70] = 0x0970;
  for (const int col : {12, 13, 14, 15}) w[6 * 72 + col] = static_cast<uint16_t>(0x0600 + col);
  for (const int col : {16, 19, 22, 23}) w[72 + col] = static_cast<uint16_t>(0x0100 + col);
  const DenseView view{.data = w.data(), .dtype = DType::f16, .rows = 10, .cols = 72, .stride = 72};
  Packed bitmap;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap, .dtype = DType::f16}, &bitmap).ok());
  const PackedTiles packed(PackedFormat::r24, bitmap.view);
  const std::span<const uint32_t> offsets = packed.offsets->span();
  EXPECT_EQ(std::vector<uint32_t>(offsets.begin(), offsets.end()),
            (std::vector<uint32_t>{0, 73, 145}));  // the first one has a residual
  ASSERT_EQ(packed.sizes.record_bytes, 2 * 1152 + 16);
  ASSERT_EQ(packed.sizes.max_record_bytes, 1152 + 16);
  const auto* words = static_cast<const uint32_t*>(packed.view.records);
  const auto* values = reinterpret_cast<const uint16_t*>(words + 32);
  // Row 6 is 4 * 1 + 2: lanes 16 to 23 write it, lane 17 columns 8 to 15, the second four of which
  // is 3 of its eight. The first two of its columns go beyond, by banks 4 * (1 ^ 6) + 2 and then 3.
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t wanted = lane == 17 ? 0x4000u : lane == 8 ? 0x30000u : lane == 10 ? 0x52u : 0u;
    EXPECT_EQ(words[lane], wanted) << lane;
  }
  EXPECT_EQ(values[17 * 8 + 6], 0x060d);
  EXPECT_EQ(values[17 * 8 + 7], 0x060f);
  const uint32_t at = 128 * 6 + 16 * (1 ^ 6) + 2 * 4;
  EXPECT_EQ(words[288], (at << 16) | 0x060c);
  EXPECT_EQ(words[289], ((at + 4) << 16) | 0x060e);
  EXPECT_EQ(words[290], words[289]);
  EXPECT_EQ(words[291], words[289]);
  // Row 1: lane 10 writes columns 16 to 23, pair 03 of the first four and 23 of the second.
  for (const auto& [i, col] : {std::pair{0, 16}, {1, 19}, {2, 22}, {3, 23}}) {
    EXPECT_EQ(values[10 * 8 + i], 0x0100 + col);
  }
  // Row 9 is 4 * 2 + 1: lane 8 writes columns 1 and 2, pair 12.
  EXPECT_EQ(values[256 + 8 * 8], 0x0901);
  EXPECT_EQ(values[256 + 8 * 8 + 1], 0x0902);
  // And column 70, which is the second of pair 02 of the second four.
  const auto* second = values + 73 * 8;
  EXPECT_EQ(words[73 * 4 + 8], 0x00100000u);
  EXPECT_EQ(second[256 + 8 * 8 + 3], 0x0970);
}

// Random halves: bytes a weight, and how often 32 neighbouring entries meet in a bank.
TEST(RoundTripR24, ResidualsKeepApartInBanks) {
  std::mt19937_64 random(6);
  std::vector<uint16_t> w(64 * 1024);
  for (uint16_t& v : w) v = random() % 2 != 0 ? 0x3f80 : 0;
  const DenseView view{
      .data = w.data(), .dtype = DType::bf16, .rows = 64, .cols = 1024, .stride = 1024};
  Packed bitmap;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap, .dtype = DType::bf16}, &bitmap).ok());
  const PackedTiles packed(PackedFormat::r24, bitmap.view);
  EXPECT_LE(packed.sizes.record_bytes, 1.53 * 64 * 1024);
  const auto* words = static_cast<const uint32_t*>(packed.view.records);
  int64_t stores = 0, wavefronts = 0;
  for (size_t tile = 0; tile + 1 < packed.offsets->size(); ++tile) {
    const uint32_t end = 4 * (*packed.offsets)[tile + 1];
    for (uint32_t i = 4 * (*packed.offsets)[tile] + 288; i < end; i += 32) {
      std::array<int, 32> in_bank = {};
      for (uint32_t j = i; j < std::min(i + 32, end); ++j) ++in_bank[words[j] >> 18 & 31];
      wavefronts += *std::max_element(in_bank.begin(), in_bank.end());
      ++stores;
    }
  }
  EXPECT_LE(static_cast<double>(wavefronts), 2.2 * static_cast<double>(stores));
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

TEST(RoundTripR24, CheckNoticesWhatContradictsItself) {
  std::mt19937_64 random(7);
  const PackSpec spec{.format = Format::bitmap, .dtype = DType::bf16};
  const Weights w = make_weights(random, {20, 70}, DType::bf16, spec, Keep::half, true);
  Packed bitmap;
  ASSERT_TRUE(pack_guarded(w.view, spec, &bitmap).ok());
  PackedTiles packed(PackedFormat::r24, bitmap.view);
  ASSERT_TRUE(r24::check(packed.view).ok());
  for (uint32_t& offset : packed.offsets->span()) {
    for (const uint32_t flip : {0x40u, 0x80000000u}) {
      offset ^= flip;
      EXPECT_FALSE(r24::check(packed.view).ok()) << &offset - packed.offsets->data();
      offset ^= flip;
    }
  }
  auto* words = reinterpret_cast<uint32_t*>(packed.records->data());
  const auto refused = [&](uint32_t i, uint32_t wrong) {
    const uint32_t right = words[i];
    words[i] = wrong;
    const Status checked = r24::check(packed.view);
    words[i] = right;
    return std::string(checked.text) ==
           "r24: records: got codes that are no pairs, entries outside their tile, or values "
           "beyond 20 rows and 70 columns, in tile " +
               std::to_string(i < 4 * (*packed.offsets)[1] ? 0 : 1);
  };
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (int digit = 0; digit < 32; digit += 4) {
      EXPECT_TRUE(refused(lane, words[lane] | 6u << digit)) << "code " << lane;
    }
  }
  ASSERT_GT((*packed.offsets)[1], 72u);
  EXPECT_TRUE(refused(288, 2048u << 16)) << "beyond the tile";
  EXPECT_TRUE(refused(288, 1u << 16)) << "half of a value";
  const uint32_t second = 4 * (*packed.offsets)[1];  // whose columns beyond 5 are none
  EXPECT_TRUE(refused(second + 32 + 4 * 1, 1)) << "a value beyond the columns";
  EXPECT_FALSE(refused(second + 32, words[second + 32] ^ 1)) << "another value";
  EXPECT_TRUE(r24::check(packed.view).ok());
}

}  // namespace
}  // namespace tamis::test
