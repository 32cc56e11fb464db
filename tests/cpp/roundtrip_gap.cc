// The law of gap: unpack(pack(bitmap or nm of w)) == w bit for bit, in exactly the stated bytes;
// and its check notices a record that contradicts itself.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "format/gap.h"
#include "packed_tiles.h"

namespace tamis::test {
namespace {

TEST(RoundTripGap, ComesBackBitForBit) {
  const Shape shapes[] = {{1, 1}, {5, 4, 2}, {32, 64}, {33, 65, 3}, {70, 130}, {100, 320}};
  for_masks(shapes, [](const Weights& w, const MatrixView& canonical) {
    for (const int32_t parts : {1, 8, 64}) {
      const PackedTiles packed(PackedFormat::gap, canonical, parts);
      const Status checked = gap::check(packed.view);
      ASSERT_TRUE(checked.ok()) << checked.text;
      expect_unpacked(
          w, [&](uint16_t* out, int64_t stride) { gap::unpack(packed.view, out, stride); });
    }
  });
}

// The layout comment, by hand: row 1 keeps columns 3, 5 and 40, two fillers from 5; row 0 column 7.
TEST(RoundTripGap, GoldenRecord) {
  std::vector<uint16_t> w(2 * 64);
  w[7] = 0x0707;
  w[64 + 3] = 0x0303;
  w[64 + 5] = 0x0505;
  w[64 + 40] = 0x4040;
  const DenseView view{.data = w.data(), .dtype = DType::bf16, .rows = 2, .cols = 64, .stride = 64};
  Packed bitmap;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap, .dtype = DType::bf16}, &bitmap).ok());
  const PackedTiles packed(PackedFormat::gap, bitmap.view, 2);
  ASSERT_EQ(packed.sizes.record_bytes, 128 + 128 + 640);
  EXPECT_EQ(packed.view.offsets[1], 7u);
  const auto* bytes = static_cast<const uint8_t*>(packed.view.records);
  const auto* rows = reinterpret_cast<const uint32_t*>(bytes);
  const auto* firsts = reinterpret_cast<const uint16_t*>(bytes + 128);
  const auto* values = reinterpret_cast<const uint16_t*>(bytes + 256);
  const auto* gaps = reinterpret_cast<const uint32_t*>(bytes + 256 + 512);
  EXPECT_EQ(rows[0], 1u);  // the longer one first
  EXPECT_EQ(rows[1], 0u);
  for (int lane = 2; lane < 32; ++lane) EXPECT_EQ(rows[lane], UINT32_MAX);
  EXPECT_EQ(firsts[0], 3);
  EXPECT_EQ(firsts[1], 7);
  // One step: the second part has it, the first has none.
  EXPECT_EQ(firsts[32], 3);
  EXPECT_EQ(firsts[33], 7);
  EXPECT_EQ(std::vector<int>(values, values + 8),
            (std::vector<int>{0x0303, 0x0505, 0, 0, 0x4040, 0, 0, 0}));
  EXPECT_EQ(values[8], 0x0707);
  // Gaps 0, 2, 15, 15 in the low nibbles, 5, 0, 0, 0 in the high ones.
  EXPECT_EQ(gaps[0], 0x0f0f0250u);
  EXPECT_EQ(gaps[1], 0u);
}

TEST(RoundTripGap, RefusesWhatItCannotHold) {
  const float w[4] = {1, 0, 2, 3};
  const DenseView view{.data = w, .rows = 1, .cols = 4, .stride = 4};
  Packed csr, floats;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::csr}, &csr).ok());
  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap}, &floats).ok());
  t16::Sizes sizes;
  EXPECT_STREQ(gap::pack_sizes(csr.view, 8, &sizes).text,
               "gap: format: got csr, wanted bitmap or nm");
  EXPECT_STREQ(gap::pack_sizes(floats.view, 8, &sizes).text,
               "gap: dtype: got f32, wanted bf16 or f16");
  const MatrixView wide{.format = Format::bitmap, .rows = 1, .cols = 65537, .dtype = DType::f16};
  EXPECT_STREQ(gap::pack_sizes(wide, 8, &sizes).text, "gap: cols: got 65537, wanted at most 65536");
}

TEST(RoundTripGap, CheckNoticesEveryFlippedHeaderByte) {
  std::mt19937_64 random(7);
  const PackSpec spec{.format = Format::bitmap, .dtype = DType::bf16};
  const Weights w = make_weights(random, {40, 200}, DType::bf16, spec, Keep::half, true);
  Packed bitmap;
  ASSERT_TRUE(pack_guarded(w.view, spec, &bitmap).ok());
  PackedTiles packed(PackedFormat::gap, bitmap.view, 4);
  expect_offsets_checked(packed, &gap::check);
  auto* record = reinterpret_cast<uint8_t*>(packed.records->data());
  for (int64_t i = 0; i < gap::kRowBytes + 4 * 64; ++i) {
    record[i] ^= 1;
    EXPECT_FALSE(gap::check(packed.view).ok()) << "byte " << i;
    record[i] ^= 1;
  }
  record[gap::header_bytes(4) + gap::kValueBytes + 1] ^= 1;  // a gap moves all columns after it
  EXPECT_FALSE(gap::check(packed.view).ok());
}

}  // namespace
}  // namespace tamis::test
