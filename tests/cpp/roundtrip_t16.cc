// The law of t16: unpack(pack(bitmap or nm of w)) == w bit for bit, in exactly the stated bytes;
// and its check notices a record that contradicts itself.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/parallel.h"
#include "format/t16.h"
#include "packing.h"

namespace tamis::test {
namespace {

struct alignas(16) Unit {
  uint8_t bytes[t16::kUnit];
};

struct PackedT16 {
  t16::Sizes sizes;
  std::unique_ptr<Guarded<Unit>> records;
  std::unique_ptr<Guarded<uint32_t>> offsets;
  T16View view;

  explicit PackedT16(const MatrixView& a) {
    const Status sized = t16::pack_sizes(a, &sizes);
    EXPECT_TRUE(sized.ok()) << sized.text;
    records = std::make_unique<Guarded<Unit>>(static_cast<size_t>(sizes.record_bytes / t16::kUnit));
    offsets = std::make_unique<Guarded<uint32_t>>(static_cast<size_t>(sizes.offsets));
    const Status packed = t16::pack(a, offsets->data(), records->data());
    EXPECT_TRUE(packed.ok()) << packed.text;
    view = {.rows = a.rows,
            .cols = a.cols,
            .dtype = a.dtype,
            .records = records->data(),
            .offsets = offsets->data(),
            .record_bytes = sizes.record_bytes,
            .max_record_bytes = sizes.max_record_bytes};
  }
};

TEST(RoundTripT16, ComesBackBitForBit) {
  const Shape shapes[] = {{1, 1}, {5, 4, 2}, {16, 64}, {17, 65, 3}, {33, 130}, {100, 320}};
  for (const Sample& sample : samples()) {
    PackSpec spec = sample.spec;
    if (spec.format != Format::bitmap && spec.format != Format::nm) continue;
    for (const DType dtype : {DType::f16, DType::bf16}) {
      spec.dtype = dtype;
      for (const Shape& shape : shapes) {
        if (!fits(spec, shape.rows, shape.cols)) continue;
        for (const Keep keep : {Keep::none, Keep::half, Keep::few, Keep::one, Keep::all}) {
          std::mt19937_64 random(static_cast<uint64_t>(shape.cols) + static_cast<uint64_t>(keep));
          const Weights w = make_weights(random, shape, dtype, spec, keep, /*finite=*/false);
          SCOPED_TRACE(sample.name + ", " + std::to_string(shape.rows) + " x " +
                       std::to_string(shape.cols) + ", keep " +
                       std::to_string(static_cast<int>(keep)));
          Packed canonical;
          ASSERT_TRUE(pack_guarded(w.view, spec, &canonical).ok());
          const PackedT16 packed(canonical.view);
          const Status checked = t16::check(packed.view);
          ASSERT_TRUE(checked.ok()) << checked.text;
          EXPECT_LE(packed.sizes.max_record_bytes, t16::kMaxRecordBytes);

          const int64_t stride = shape.cols + 3;
          Guarded<uint16_t> out(static_cast<size_t>((shape.rows - 1) * stride + shape.cols));
          ASSERT_TRUE(t16::unpack(packed.view, out.data(), stride).ok());
          for (int64_t r = 0; r < shape.rows; ++r) {
            for (int64_t c = 0; c < shape.cols; ++c) {
              ASSERT_EQ(out[r * stride + c], w.kept(r, c) ? w.bits(r, c) : 0) << r << ", " << c;
            }
          }
        }
      }
    }
  }
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
  const PackedT16 packed(bitmap.view);
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
  PackedT16 packed(bitmap.view);
  for (size_t i = 0; i < packed.offsets->size(); ++i) {
    for (const uint32_t flip : {1u, 0x40u, 0x80000000u}) {
      (*packed.offsets)[i] ^= flip;
      EXPECT_FALSE(t16::check(packed.view).ok()) << "offset " << i;
      (*packed.offsets)[i] ^= flip;
    }
  }
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
