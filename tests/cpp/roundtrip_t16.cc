// The law of t16: unpack(pack(bitmap or nm of w)) == w bit for bit, in exactly the stated bytes;
// and its check notices a record that contradicts itself.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "format/t16.h"
#include "packed_tiles.h"

namespace tamis::test {
namespace {

TEST(RoundTripT16, ComesBackBitForBit) {
  const Shape shapes[] = {{1, 1}, {5, 4, 2}, {16, 64}, {17, 65, 3}, {33, 130}, {100, 320}};
  for_masks(shapes, [](const Weights& w, const MatrixView& canonical) {
    const PackedTiles packed(PackedFormat::t16, canonical);
    const Status checked = t16::check(packed.view);
    ASSERT_TRUE(checked.ok()) << checked.text;
    EXPECT_LE(packed.sizes.max_record_bytes, t16::kMaxRecordBytes);
    expect_unpacked(w,
                    [&](uint16_t* out, int64_t stride) { t16::unpack(packed.view, out, stride); });
  });
}

// The layout comment, by hand: row 9 of a tile keeps columns 21 and 22, row 1 column 16.
TEST(RoundTripT16, GoldenRecord) {
  std::vector<uint16_t> w(16 * 64);
  w[9 * 64 + 21] = 0x0101;
  w[9 * 64 + 22] = 0x0202;
  w[1 * 64 + 16] = 0x0303;
  const DenseView view{
      .data = w.data(), .dtype = DType::bf16, .rows = 16, .cols = 64, .stride = 64};
  Packed bitmap;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap, .dtype = DType::bf16}, &bitmap).ok());
  const PackedTiles packed(PackedFormat::t16, bitmap.view);
  ASSERT_EQ(packed.sizes.record_bytes, 144 + 16);
  const auto* words = static_cast<const uint32_t*>(packed.view.records);
  const auto* starts = reinterpret_cast<const uint16_t*>(words + 32);
  // Lane 4 * 1 + 1 owns rows 1 and 9 and columns 16 to 31. Column 16: step 0, bit 0. Columns 21
  // and 22: step 1, bits 1 and 2 of the high nibble.
  for (int lane = 0; lane < 32; ++lane) EXPECT_EQ(words[lane], lane == 5 ? 0x6001u : 0u);
  EXPECT_EQ(std::vector<int>(starts, starts + 8),
            (std::vector<int>{144, 146, 146, 146, 150, 150, 150, 150}));
  EXPECT_EQ(std::vector<int>(starts + 8, starts + 16),
            (std::vector<int>{0x0303, 0x0101, 0x0202, 0, 0, 0, 0, 0}));
}

TEST(RoundTripT16, RefusesWhatItCannotHold) {
  const float w[4] = {1, 0, 2, 3};
  const DenseView view{.data = w, .rows = 1, .cols = 4, .stride = 4};
  Packed csr, floats;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::csr}, &csr).ok());
  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap}, &floats).ok());
  t16::Sizes sizes;
  EXPECT_STREQ(t16::pack_sizes(csr.view, &sizes).text, "t16: format: got csr, wanted bitmap or nm");
  EXPECT_STREQ(t16::pack_sizes(floats.view, &sizes).text,
               "t16: dtype: got f32, wanted bf16 or f16");
}

TEST(RoundTripT16, CheckNoticesEveryFlippedHeaderByte) {
  std::mt19937_64 random(7);
  const PackSpec spec{.format = Format::bitmap, .dtype = DType::bf16};
  const Weights w = make_weights(random, {20, 70}, DType::bf16, spec, Keep::half, true);
  Packed bitmap;
  ASSERT_TRUE(pack_guarded(w.view, spec, &bitmap).ok());
  PackedTiles packed(PackedFormat::t16, bitmap.view);
  expect_offsets_checked(packed, &t16::check);
  auto* record = reinterpret_cast<uint8_t*>(packed.records->data());
  for (int64_t i = 0; i < t16::kHeaderBytes; ++i) {
    record[i] ^= 1;  // a flip in the last run shows only when it changes the length
    const bool last_run = i < t16::kWordBytes && i % 4 == 3;
    if (!last_run) {
      EXPECT_FALSE(t16::check(packed.view).ok()) << "byte " << i;
    }
    record[i] ^= 1;
  }
  EXPECT_TRUE(t16::check(packed.view).ok());
}

}  // namespace
}  // namespace tamis::test
