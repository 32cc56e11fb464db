// check: whatever the fields and arrays say, it reads nothing outside them; and what it accepts is
// canonical, so unpacking stays inside too and packing again gives the same arrays.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "packing.h"

namespace tamis::test {
namespace {

template <class T>
bool same(const Guarded<T>& a, const Guarded<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// For views that check accepts and that are small enough to unpack.
void expect_canonical(const Packed& p, const PackSpec& spec) {
  const MatrixView& a = p.view;
  const DType dtype = is_float(a.dtype) ? a.dtype : DType::f32;
  Guarded<uint8_t> dense(static_cast<size_t>(a.rows * a.cols * size_of(dtype)));
  Guarded<uint8_t> keep(static_cast<size_t>(a.rows * a.cols));
  ASSERT_TRUE(unpack(a, dense.data(), a.cols).ok());
  ASSERT_TRUE(unpack_keep(a, keep.data()).ok());
  if (!is_float(a.dtype)) return;  // flipped codes and scales need not be what pack would choose
  Packed again;
  const DenseView w{.data = dense.data(),
                    .dtype = dtype,
                    .rows = a.rows,
                    .cols = a.cols,
                    .stride = a.cols,
                    .keep = keep.data()};
  const Status s = pack_guarded(w, spec, &again);
  ASSERT_TRUE(s.ok()) << s.text;
  EXPECT_TRUE(same(*again.values, *p.values));
  EXPECT_TRUE(same(*again.mask, *p.mask));
  EXPECT_TRUE(same(*again.row_offsets, *p.row_offsets));
  EXPECT_TRUE(same(*again.col_indices, *p.col_indices));
}

class Check : public testing::TestWithParam<Sample> {
 protected:
  // A matrix of this format that every sample's group or block divides.
  Packed packed(DType dtype, uint64_t seed) {
    spec_ = GetParam().spec;
    if (spec_.format == Format::groupq) {
      dtype = DType::f16;  // of the weights; the codes are what the sample says
    } else {
      spec_.dtype = dtype;
      spec_.group_size = dtype == DType::i8 ? 48 : 0;
    }
    std::mt19937_64 random(seed);
    const auto [rows, cols] = shape();
    weights_ = make_weights(random, {rows, cols}, dtype == DType::i8 ? DType::f32 : dtype, spec_,
                            Keep::half, /*finite=*/true);
    Packed p;
    const Status s = pack_guarded(weights_.view, spec_, &p);
    EXPECT_TRUE(s.ok()) << s.text;
    return p;
  }
  std::pair<int64_t, int64_t> shape() const {
    const PackSpec& s = GetParam().spec;
    if (s.format == Format::nm) return {6, 130 / s.of * s.of};
    if (s.format == Format::groupq) return {6, 67 * s.group_size};
    if (s.format == Format::block) return {s.block_rows * 3, (200 / s.block_cols) * s.block_cols};
    return {6, 130};
  }

  PackSpec spec_;
  Weights weights_;
};

TEST_P(Check, EveryMaskBitMatters) {
  Packed p = packed(DType::bf16, 1);
  for (size_t i = 0; i < p.mask->size() * 64; ++i) {
    (*p.mask)[i / 64] ^= uint64_t{1} << (i % 64);
    const Status s = check(p.view, p.sizes);
    EXPECT_EQ(s.code, Code::corrupt) << "bit " << i;
    EXPECT_EQ(std::string(s.text).rfind("check: mask: got ", 0), 0u) << s.text;
    (*p.mask)[i / 64] ^= uint64_t{1} << (i % 64);
  }
  EXPECT_TRUE(check(p.view, p.sizes).ok());
}

TEST_P(Check, BitFlipsAreRefusedOrHarmless) {
  int refused = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Packed p = packed(seed % 2 == 0 ? DType::f32 : DType::i8, seed);
    std::mt19937_64 random(seed);
    const auto flip = [&](auto& array) {
      if (array.size() == 0) return;
      const auto bytes = std::as_writable_bytes(array.span());
      bytes[random() % bytes.size()] ^= std::byte{static_cast<uint8_t>(1u << (random() % 8))};
    };
    for (uint64_t flips = 1 + random() % 3; flips > 0; --flips) {
      switch (random() % 5) {
        case 0:
          flip(*p.values);
          break;
        case 1:
          flip(*p.mask);
          break;
        case 2:
          flip(*p.row_offsets);
          break;
        case 3:
          flip(*p.col_indices);
          flip(*p.col_bytes);
          break;
        default:
          flip(*p.scales);
          flip(*p.group_scales);
          break;
      }
    }
    const Status s = check(p.view, p.sizes);
    if (s.ok()) {
      SCOPED_TRACE("seed " + std::to_string(seed));
      expect_canonical(p, spec_);
    } else {
      ++refused;
      EXPECT_NE(std::string(s.text).find(", wanted "), std::string::npos) << s.text;
    }
  }
  EXPECT_GT(refused, 30);
}

TEST_P(Check, HostileFieldsAreRefused) {
  const Packed good = packed(DType::f32, 2);
  const std::vector<int64_t> hostile = {std::numeric_limits<int64_t>::min(),
                                        -(int64_t{1} << 32),
                                        -1,
                                        0,
                                        1,
                                        64,
                                        INT32_MAX,
                                        int64_t{1} << 31,
                                        int64_t{1} << 61,
                                        std::numeric_limits<int64_t>::max() - 63,
                                        std::numeric_limits<int64_t>::max()};
  std::mt19937_64 random(5);
  const auto pick = [&](auto& field) {
    if (random() % 3 != 0) return;
    field =
        static_cast<std::remove_reference_t<decltype(field)>>(hostile[random() % hostile.size()]);
  };
  int refused = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    MatrixView a = good.view;
    PackSizes sizes = good.sizes;
    pick(a.rows);
    pick(a.cols);
    pick(a.nnz);
    pick(a.keep);
    pick(a.of);
    pick(a.block_rows);
    pick(a.block_cols);
    pick(a.group_size);
    if (random() % 8 == 0) a.dtype = static_cast<DType>(random() % 6);
    if (random() % 8 == 0) a.format = static_cast<Format>(random() % 6);
    // Claims about the arrays stay true unless the array is missing.
    if (random() % 16 == 0) a.mask = nullptr;
    if (random() % 16 == 0) a.row_offsets = nullptr;
    if (random() % 16 == 0) a.col_indices = nullptr;
    if (random() % 16 == 0) a.group_scales = nullptr;
    // values' bytes are f32: as narrower elements there would be more of them.
    const Status s = check(a, sizes);
    refused += s.ok() ? 0 : 1;
    if (!s.ok()) {
      ASSERT_NE(std::string(s.text).find(", wanted "), std::string::npos) << s.text;
    }
  }
  EXPECT_GT(refused, 15000);
}

TEST_P(Check, EveryLengthMatters) {
  const Packed p = packed(DType::i8, 3);
  for (int64_t PackSizes::* field :
       {&PackSizes::values, &PackSizes::mask, &PackSizes::row_offsets, &PackSizes::col_indices,
        &PackSizes::col_bytes, &PackSizes::scales, &PackSizes::group_scales}) {
    for (const int64_t change : {-1, 1}) {
      PackSizes sizes = p.sizes;
      sizes.*field += change;
      const Status s = check_sizes(p.view, sizes);
      EXPECT_EQ(s.code, Code::corrupt);
      EXPECT_NE(std::string(s.text).find(", wanted "), std::string::npos) << s.text;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Check, testing::ValuesIn(all_samples()),
                         [](const auto& info) { return info.param.name; });

TEST(CheckText, SaysWhatIsWrong) {
  const float w[6] = {1, 0, 2, 0, 3, 4};
  const DenseView view{.data = w, .rows = 2, .cols = 3, .stride = 3};
  Packed p;
  const auto text = [&] { return std::string(check(p.view, p.sizes).text); };
  ASSERT_TRUE(pack_guarded(view, {.format = Format::csr}, &p).ok());
  (*p.row_offsets)[0] = 1;
  EXPECT_EQ(text(), "check: row_offsets[0]: got 1, wanted 0");
  (*p.row_offsets)[0] = 0;
  (*p.row_offsets)[1] = 5;
  EXPECT_EQ(text(), "check: row_offsets[1]: got 5, wanted at least the 0 before it and at most 4");
  (*p.row_offsets)[1] = 2;
  (*p.row_offsets)[2] = 3;
  EXPECT_EQ(text(), "check: row_offsets[2]: got 3, wanted 4 at the end");
  (*p.row_offsets)[2] = 4;
  (*p.col_indices)[1] = 3;
  EXPECT_EQ(text(), "check: col_indices[1]: got 3, wanted more than 0 and less than 3");
  (*p.col_indices)[1] = 0;
  EXPECT_EQ(text(), "check: col_indices[1]: got 0, wanted more than 0 and less than 3");

  ASSERT_TRUE(pack_guarded(view, {.format = Format::csr8}, &p).ok());
  (*p.col_bytes)[0] = 3;
  EXPECT_EQ(text(),
            "check: col_bytes[0]: got 3 values in a word of row 0, wanted at most the 2 that the "
            "row has left");
  (*p.col_bytes)[0] = 1;
  EXPECT_EQ(text(), "check: col_bytes: got counts of 1 in row 0, wanted its 2 values");
  (*p.col_bytes)[0] = 2;
  (*p.col_bytes)[3] = 3;
  EXPECT_EQ(text(), "check: col_bytes[3]: got column 3, wanted more than 0 and less than 3");
  (*p.col_bytes)[3] = 0;
  EXPECT_EQ(text(), "check: col_bytes[3]: got column 0, wanted more than 0 and less than 3");

  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap, .dtype = DType::i8}, &p).ok());
  (*p.mask)[1] = 0b1011;
  EXPECT_EQ(text(), "check: mask: got bits beyond column 3 in row 1, wanted none");
  (*p.mask)[1] = 0b111;
  EXPECT_EQ(text(), "check: mask: got 3 bits in row 1, wanted 2 as row_offsets say");
  (*p.mask)[1] = 0b110;
  (*p.scales)[1] = INFINITY;
  EXPECT_EQ(text(), "check: scales: got inf for row 1, group 0, wanted a finite number");
  (*p.scales)[1] = 1;
  p.view.scales = reinterpret_cast<const float*>(p.values->data() + 1);
  EXPECT_EQ(text(), "check: scales: got an address that is not a multiple of 4 bytes, wanted one");
}

}  // namespace
}  // namespace tamis::test
