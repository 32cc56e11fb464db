// The laws of m24i8, m24i4 and t16i8: unpack(pack(nm or bitmap of i8)) gives the canonical codes
// back, in exactly the stated bytes; their layout comments, by hand; what they refuse.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "packed_tiles.h"

namespace tamis::test {
namespace {

// Codes of the canonical matrix, dense.
std::vector<int8_t> dense_codes(const MatrixView& a) {
  std::vector<int8_t> codes(static_cast<size_t>(a.rows * a.cols), 0);
  int64_t i = 0;
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t c = 0; c < a.cols; ++c) {
      if (a.mask[r * mask_words(a.cols) + c / 64] >> (c % 64) & 1) {
        codes[static_cast<size_t>(r * a.cols + c)] = static_cast<const int8_t*>(a.values)[i++];
      }
    }
  }
  return codes;
}

TEST(RoundTripBytes, CodesComeBack) {
  const Shape shapes[] = {{1, 4}, {5, 12, 2}, {16, 64}, {17, 68, 3}, {33, 132}, {100, 320}};
  for (const Sample& sample : samples()) {
    PackSpec spec = sample.spec;
    if (spec.format != Format::bitmap && spec.format != Format::nm) continue;
    spec.dtype = DType::i8;
    for (const Shape& shape : shapes) {
      if (!fits(spec, shape.rows, shape.cols)) continue;
      for (const Keep keep : {Keep::none, Keep::half, Keep::few, Keep::one, Keep::all}) {
        std::mt19937_64 random(static_cast<uint64_t>(shape.cols) + static_cast<uint64_t>(keep));
        const Weights w = make_weights(random, shape, DType::f16, spec, keep, /*finite=*/true);
        SCOPED_TRACE(sample.name + ", " + std::to_string(shape.rows) + " x " +
                     std::to_string(shape.cols) + ", keep " +
                     std::to_string(static_cast<int>(keep)));
        Packed canonical;
        ASSERT_TRUE(pack_guarded(w.view, spec, &canonical).ok());
        std::vector<int8_t> wanted = dense_codes(canonical.view);
        const int64_t stride = shape.cols + 3;
        std::vector<int8_t> out(static_cast<size_t>(shape.rows * stride), 77);
        const auto expect_codes = [&] {
          for (int64_t r = 0; r < shape.rows; ++r) {
            for (int64_t c = 0; c < stride; ++c) {
              const int8_t code =
                  c < shape.cols ? wanted[static_cast<size_t>(r * shape.cols + c)] : int8_t{77};
              ASSERT_EQ(out[static_cast<size_t>(r * stride + c)], code) << r << ", " << c;
            }
          }
        };
        const PackedTiles tiles(PackedFormat::t16i8, canonical.view);
        t16i8::unpack(tiles.view, out.data(), stride);
        expect_codes();
        if (spec.format != Format::nm || spec.of != 4 || spec.keep > 2) continue;
        const PackedTiles bytes(PackedFormat::m24i8, canonical.view);
        std::fill(out.begin(), out.end(), int8_t{77});
        m24i8::unpack(shape.rows, shape.cols, bytes.view.records, out.data(), stride);
        expect_codes();
        spec.code_limit = 7;
        ASSERT_TRUE(pack_guarded(w.view, spec, &canonical).ok());
        const PackedTiles halves(PackedFormat::m24i4, canonical.view);
        wanted = dense_codes(canonical.view);
        std::fill(out.begin(), out.end(), int8_t{77});
        m24i4::unpack(shape.rows, shape.cols, halves.view.records, out.data(), stride);
        expect_codes();
        spec.code_limit = 127;
      }
    }
  }
}

// Row 9 of a tile keeps columns 21 and 22 (codes 64 and 127), row 1 column 16 (its largest: 127).
TEST(RoundTripBytes, GoldenRecordOfT16i8) {
  std::vector<float> w(16 * 64);
  w[9 * 64 + 21] = 0.64F;
  w[9 * 64 + 22] = 1.27F;
  w[1 * 64 + 16] = 3;
  const DenseView view{.data = w.data(), .rows = 16, .cols = 64, .stride = 64};
  Packed bitmap;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap, .dtype = DType::i8}, &bitmap).ok());
  const PackedTiles packed(PackedFormat::t16i8, bitmap.view);
  ASSERT_EQ(packed.sizes.record_bytes, 272 + 16);
  const auto* words = static_cast<const uint32_t*>(packed.view.records);
  const auto* before = reinterpret_cast<const uint8_t*>(words + 32);
  const auto* starts = reinterpret_cast<const uint16_t*>(words + 64);
  const auto* codes = reinterpret_cast<const int8_t*>(starts + 8);
  // Lane 4 * 1 + 1 owns rows 1 and 9 and columns 16 to 31. Column 16: run 0, bit 0. Columns 21 and
  // 22: run 1, bits 5 and 6.
  for (int lane = 0; lane < 32; ++lane) EXPECT_EQ(words[lane], lane == 5 ? 0x6001u : 0u);
  EXPECT_EQ(std::vector<int>(starts, starts + 4), (std::vector<int>{272, 273, 275, 275}));
  EXPECT_EQ(starts[4], 18);
  for (int lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(std::vector<int>(before + 4 * lane, before + 4 * lane + 4),
              (lane > 5 ? std::vector<int>{1, 2, 0, 0} : std::vector<int>{0, 0, 0, 0}));
  }
  EXPECT_EQ(std::vector<int>(codes, codes + 8), (std::vector<int>{127, 64, 127, 0, 0, 0, 0, 0}));
}

// Row 9 keeps columns 21 and 22, the sixth four, so elements 10 and 11; row 1 column 35 alone, the
// ninth four.
TEST(RoundTripBytes, GoldenRecordOfM24i8) {
  std::vector<float> w(16 * 64);
  w[9 * 64 + 21] = 0.64F;
  w[9 * 64 + 22] = 1.27F;
  w[1 * 64 + 35] = 3;
  const DenseView view{.data = w.data(), .rows = 16, .cols = 64, .stride = 64};
  const PackSpec spec{.format = Format::nm, .dtype = DType::i8, .keep = 2, .of = 4};
  Packed nm;
  ASSERT_TRUE(pack_guarded(view, spec, &nm).ok());
  const PackedTiles packed(PackedFormat::m24i8, nm.view);
  const auto* places = static_cast<const uint32_t*>(packed.view.records);
  const auto* codes = reinterpret_cast<const int8_t*>(places + 32);
  // Elements 10 and 11 of row 9 = 1 + 8: lane 4 * 1 + 2, its second four codes; column 35 is the
  // last of its four: element 17 of row 1, lane 4, its third four codes.
  for (int i = 0; i < 512; ++i) {
    const int wanted = i == 6 * 16 + 4 + 2                          ? 64
                       : i == 6 * 16 + 4 + 3 || i == 4 * 16 + 8 + 1 ? 127
                                                                    : 0;
    EXPECT_EQ(codes[i], wanted) << i;
  }
  EXPECT_EQ(places[5] >> 20 & 15, 1u | 2u << 2);     // row 9, elements 10 and 11
  EXPECT_EQ(places[4 + 2] >> 0 & 15, 0u | 3u << 2);  // row 1, elements 16 and 17
}

TEST(RoundTripBytes, RefuseWhatTheyCannotHold) {
  const float w[4] = {1, 0, 2, 0};
  const DenseView view{.data = w, .rows = 1, .cols = 4, .stride = 4};
  Packed csr, floats, three;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::csr, .dtype = DType::i8}, &csr).ok());
  ASSERT_TRUE(pack_guarded(view, {.format = Format::nm, .keep = 2, .of = 4}, &floats).ok());
  ASSERT_TRUE(
      pack_guarded(view, {.format = Format::nm, .dtype = DType::i8, .keep = 3, .of = 4}, &three)
          .ok());
  t16::Sizes sizes;
  EXPECT_STREQ(t16i8::pack_sizes(csr.view, &sizes).text,
               "t16i8: format: got csr, wanted bitmap or nm");
  EXPECT_STREQ(t16i8::pack_sizes(floats.view, &sizes).text, "t16i8: dtype: got f32, wanted i8");
  EXPECT_STREQ(m24i8::pack(three.view, nullptr).text,
               "m24i8: format: got nm 3:4, wanted nm 2:4 or 1:4");
  EXPECT_STREQ(m24i8::pack(floats.view, nullptr).text, "m24i8: dtype: got f32, wanted i8");
  Packed wide;
  ASSERT_TRUE(
      pack_guarded(view, {.format = Format::nm, .dtype = DType::i8, .keep = 2, .of = 4}, &wide)
          .ok());
  const Status refused = m24i4::pack(wide.view, nullptr);
  EXPECT_EQ(refused.code, Code::no_kernel);
  EXPECT_NE(std::string(refused.text).find("wanted codes of 4 bits"), std::string::npos);
}

}  // namespace
}  // namespace tamis::test
