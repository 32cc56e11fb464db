// The law of gap: unpack(pack(bitmap or nm of w)) == w bit for bit, in exactly the stated bytes;
// and its check notices a record that contradicts itself.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "format/gap.h"
#include "packing.h"

namespace tamis::test {
namespace {

struct alignas(16) Unit {
  uint8_t bytes[gap::kUnit];
};

struct PackedGap {
  t16::Sizes sizes;
  std::unique_ptr<Guarded<Unit>> records;
  std::unique_ptr<Guarded<uint32_t>> offsets;
  T16View view;

  PackedGap(const MatrixView& a, int32_t parts) {
    const Status sized = gap::pack_sizes(a, parts, &sizes);
    EXPECT_TRUE(sized.ok()) << sized.text;
    records = std::make_unique<Guarded<Unit>>(static_cast<size_t>(sizes.record_bytes / gap::kUnit));
    offsets = std::make_unique<Guarded<uint32_t>>(static_cast<size_t>(sizes.offsets));
    const Status packed = gap::pack(a, parts, offsets->data(), records->data());
    EXPECT_TRUE(packed.ok()) << packed.text;
    view = {.format = PackedFormat::gap,
            .rows = a.rows,
            .cols = a.cols,
            .dtype = a.dtype,
            .records = records->data(),
            .offsets = offsets->data(),
            .parts = parts,
            .record_bytes = sizes.record_bytes,
            .max_record_bytes = sizes.max_record_bytes};
  }
};

TEST(RoundTripGap, ComesBackBitForBit) {
  const Shape shapes[] = {{1, 1}, {5, 4, 2}, {32, 64}, {33, 65, 3}, {70, 130}, {100, 320}};
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
          for (const int32_t parts : {1, 8, 64}) {
            const PackedGap packed(canonical.view, parts);
            const Status checked = gap::check(packed.view);
            ASSERT_TRUE(checked.ok()) << checked.text;

            const int64_t stride = shape.cols + 3;
            Guarded<uint16_t> out(static_cast<size_t>((shape.rows - 1) * stride + shape.cols));
            gap::unpack(packed.view, out.data(), stride);
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
  const PackedGap packed(bitmap.view, 2);
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
  PackedGap packed(bitmap.view, 4);
  for (size_t i = 0; i < packed.offsets->size(); ++i) {
    for (const uint32_t flip : {1u, 0x40u, 0x80000000u}) {
      (*packed.offsets)[i] ^= flip;
      EXPECT_FALSE(gap::check(packed.view).ok()) << "offset " << i;
      (*packed.offsets)[i] ^= flip;
    }
  }
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
