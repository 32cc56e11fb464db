// The law of every format: unpack(pack(w, keep)) == w where kept, +0 elsewhere, bit for bit; i8
// within half a step. Inputs and outputs lie against inaccessible pages, so a read or write one
// element too far faults.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "base/parallel.h"
#include "packing.h"

namespace tamis::test {
namespace {

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all = {
      {0, 64},  {3, 0},   {1, 1},     {5, 1, 2},    {4, 5},      {2, 26, 1}, {6, 63, 3},
      {3, 64},  {3, 65},  {4, 65, 7}, {16, 130, 1}, {16, 160},   {2, 32, 1}, {7, 192},
      {32, 80}, {9, 128}, {6, 195},   {48, 130},    {130, 64, 5}};
  return all;
}

class RoundTrip : public testing::TestWithParam<Sample> {
 protected:
  // Calls fn(weights, spec, label) for every shape and way of keeping that fits the format.
  template <class Fn>
  void for_each_input(DType dtype, bool finite, const Fn& fn) {
    const PackSpec& format = GetParam().spec;
    int tried = 0;
    for (const Shape& shape : shapes()) {
      if (!fits(format, shape.rows, shape.cols)) continue;
      for (const Keep keep :
           {Keep::none, Keep::half, Keep::few, Keep::one, Keep::all, Keep::null}) {
        const uint64_t seed = 1000 * static_cast<uint64_t>(shape.rows) +
                              static_cast<uint64_t>(shape.cols) + static_cast<uint64_t>(keep);
        std::mt19937_64 random(seed);
        const Weights w = make_weights(random, shape, dtype, format, keep, finite);
        SCOPED_TRACE(std::to_string(shape.rows) + " x " + std::to_string(shape.cols) + ", keep " +
                     std::to_string(static_cast<int>(keep)) + ", seed " + std::to_string(seed));
        fn(w);
        ++tried;
      }
    }
    EXPECT_GT(tried, 5);  // the shape list serves this format
  }
};

// Whether the law says that the format stores element (r, c); block and groupq widen to whole ones.
bool stored(const Weights& w, const PackSpec& spec, int64_t r, int64_t c) {
  const bool groups = spec.format == Format::groupq;
  if (spec.format != Format::block && !groups) return w.kept(r, c);
  const int64_t rows = groups ? 1 : spec.block_rows;
  const int64_t cols = groups ? spec.group_size : spec.block_cols;
  const int64_t r0 = r / rows * rows, c0 = c / cols * cols;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      if (w.kept(r0 + i, c0 + j)) return true;
    }
  }
  return false;
}

// A null keep lets nm fill groups up, so its mask may say more than the law.
bool filled(const Weights& w, const PackSpec& spec) {
  return spec.format == Format::nm && w.view.keep == nullptr;
}

// Bytes as each format's header states them.
int64_t formula(const MatrixView& a) {
  const int64_t words = (a.cols + 63) / 64;
  const int64_t group = a.group_size == 0 ? a.cols : a.group_size;
  const int64_t groups = a.cols == 0 ? 0 : (a.cols + group - 1) / group;
  const int64_t scales = a.dtype == DType::i8 ? 4 * a.rows * groups : 0;
  const int64_t value = size_of(a.dtype);
  switch (a.format) {
    case Format::bitmap:
      return a.nnz * value + 8 * a.rows * words + 8 * (a.rows + 1) + scales;
    case Format::csr:
      return a.nnz * (value + 4) + 8 * (a.rows + 1) + scales;
    case Format::csr8:
      return a.nnz * (value + 1) + a.rows * words + 8 * (a.rows + 1) + scales;
    case Format::nm:
      return a.rows * a.cols / a.of * a.keep * value + 8 * a.rows * words + scales;
    case Format::groupq: {
      const int64_t stored = a.nnz / group, bits = a.dtype == DType::u4 ? 4 : 8;
      return stored * (group * bits / 8 + 4) + 8 * a.rows * ((a.cols / group + 63) / 64) +
             8 * (a.rows + 1);
    }
    case Format::block: {
      const int64_t area = int64_t{a.block_rows} * a.block_cols;
      return a.nnz / area * (area * value + 4) + 8 * (a.rows / a.block_rows + 1) + scales;
    }
  }
  return -1;
}

void expect_keep(const Weights& w, const PackSpec& spec, const Packed& p) {
  Guarded<uint8_t> keep(static_cast<size_t>(w.view.rows * w.view.cols));
  ASSERT_TRUE(unpack_keep(p.view, keep.data()).ok());
  int64_t total = 0;
  for (int64_t r = 0; r < w.view.rows; ++r) {
    for (int64_t c = 0; c < w.view.cols; ++c) {
      const uint8_t got = keep[static_cast<size_t>(r * w.view.cols + c)];
      const bool wanted = stored(w, spec, r, c);
      if (filled(w, spec) ? wanted && got != 1 : got != static_cast<uint8_t>(wanted)) {
        FAIL() << "keep[" << r << ", " << c << "] = " << int{got};
      }
      total += got;
    }
  }
  EXPECT_EQ(total, p.view.nnz);
}

TEST_P(RoundTrip, FloatsComeBackBitForBit) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    SCOPED_TRACE(name_of(dtype));
    PackSpec spec = GetParam().spec;
    spec.dtype = dtype;
    for_each_input(dtype, /*finite=*/false, [&](const Weights& w) {
      Packed p;
      const Status packed = pack_guarded(w.view, spec, &p);
      ASSERT_TRUE(packed.ok()) << packed.text;
      const Status checked = check(p.view, p.sizes);
      ASSERT_TRUE(checked.ok()) << checked.text;
      EXPECT_EQ(p.nbytes(), formula(p.view));

      const int64_t stride = w.view.cols + 3;
      const int64_t count = w.view.rows == 0 ? 0 : (w.view.rows - 1) * stride + w.view.cols;
      Guarded<uint8_t> out(static_cast<size_t>(count * size_of(dtype)));
      std::fill(out.span().begin(), out.span().end(), uint8_t{0xa5});
      ASSERT_TRUE(unpack(p.view, out.data(), stride).ok());
      for (int64_t r = 0; r < w.view.rows; ++r) {
        for (int64_t c = 0; c < w.view.cols; ++c) {
          const uint32_t got = bits_of(out.data(), dtype, r * stride + c);
          // nm may fill a group up with a -0 that nobody asked to keep.
          if (filled(w, spec) && is_float_zero(w.bits(r, c), dtype) && got == w.bits(r, c))
            continue;
          const uint32_t wanted = w.kept(r, c) ? w.bits(r, c) : 0;
          ASSERT_EQ(got, wanted) << r << ", " << c;
        }
        for (int64_t c = w.view.cols; c < stride && r + 1 < w.view.rows; ++c) {
          ASSERT_EQ(bits_of(out.data(), dtype, r * stride + c) & 0xffffu, 0xa5a5u)
              << "padding written at " << r << ", " << c;
        }
      }
      expect_keep(w, spec, p);
    });
  }
}

float value_of(uint32_t bits, DType dtype) {
  return dtype == DType::f32   ? std::bit_cast<float>(bits)
         : dtype == DType::f16 ? f32_from_f16(static_cast<uint16_t>(bits))
                               : f32_from_bf16(static_cast<uint16_t>(bits));
}

TEST_P(RoundTrip, Int8ComesBackWithinHalfAStep) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const int64_t group_size : {0, 1, 7, 64, 100}) {
      SCOPED_TRACE(std::string(name_of(dtype)) + " in groups of " + std::to_string(group_size));
      PackSpec spec = GetParam().spec;
      spec.dtype = DType::i8;
      spec.group_size = group_size;
      for_each_input(dtype, /*finite=*/true, [&](const Weights& w) {
        Packed p;
        const Status packed = pack_guarded(w.view, spec, &p);
        ASSERT_TRUE(packed.ok()) << packed.text;
        const Status checked = check(p.view, p.sizes);
        ASSERT_TRUE(checked.ok()) << checked.text;
        EXPECT_EQ(p.nbytes(), formula(p.view));
        const int64_t rows = w.view.rows, cols = w.view.cols;
        Guarded<float> out(static_cast<size_t>(rows * cols));
        ASSERT_TRUE(unpack(p.view, out.data(), cols).ok());
        const int64_t group = group_size == 0 ? std::max<int64_t>(cols, 1) : group_size;
        const int64_t groups = (cols + group - 1) / group;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t g = 0; g < groups; ++g) {
            const int64_t end = std::min(cols, (g + 1) * group);
            double absmax = 0;
            for (int64_t c = g * group; c < end; ++c) {
              if (w.kept(r, c)) {
                absmax = std::max(absmax, std::fabs(double{value_of(w.bits(r, c), dtype)}));
              }
            }
            const double scale = (*p.scales)[static_cast<size_t>(r * groups + g)];
            ASSERT_NEAR(scale, absmax / 127, std::max(1e-6 * scale, 1.5e-45)) << r << ", " << g;
            for (int64_t c = g * group; c < end; ++c) {
              const double wanted = w.kept(r, c) ? value_of(w.bits(r, c), dtype) : 0.0;
              ASSERT_NEAR(out[static_cast<size_t>(r * cols + c)], wanted, scale * 0.50002)
                  << r << ", " << c;
            }
          }
        }
        expect_keep(w, spec, p);
      });
    }
  }
}

TEST_P(RoundTrip, ThreadsDoNotChangeTheArrays) {
  PackSpec spec = GetParam().spec;
  const int64_t unit = std::max({1, spec.of, spec.block_cols});
  const Shape shape{96, 4000 / unit * unit};  // enough for four threads
  std::mt19937_64 random(3);
  const Weights w = make_weights(random, shape, DType::f32, spec, Keep::half, /*finite=*/true);
  for (const DType dtype : {DType::f32, DType::i8}) {
    spec.dtype = dtype;
    Packed one, four;
    set_num_threads(1);
    ASSERT_TRUE(pack_guarded(w.view, spec, &one).ok());
    set_num_threads(4);
    ASSERT_TRUE(pack_guarded(w.view, spec, &four).ok());
    set_num_threads(0);
    const auto same = [](const auto& a, const auto& b) {
      return a->size() == b->size() &&
             std::memcmp(a->data(), b->data(), a->span().size_bytes()) == 0;
    };
    EXPECT_TRUE(same(one.values, four.values));
    EXPECT_TRUE(same(one.mask, four.mask));
    EXPECT_TRUE(same(one.row_offsets, four.row_offsets));
    EXPECT_TRUE(same(one.col_indices, four.col_indices));
    EXPECT_TRUE(same(one.scales, four.scales));
  }
}

// Stored groups come back within half a step, what is not kept as 0; steps are as large as the
// range, widened to take in 0, needs, or the next f16 above.
class GroupTrip : public RoundTrip {};

TEST_P(GroupTrip, CodesAreWithinHalfAStep) {
  const PackSpec& spec = GetParam().spec;
  const double highest = spec.dtype == DType::u4 ? 15 : 255;
  for (const DType dtype : {DType::f16, DType::bf16, DType::f32}) {
    SCOPED_TRACE(name_of(dtype));
    for_each_input(dtype, /*finite=*/true, [&](const Weights& all) {
      // Any f16 range fits; the wider dtypes are scaled down to what f16 steps hold.
      const Weights& w = all;
      for (int64_t i = 0; dtype != DType::f16 && i < w.view.rows * w.view.stride; ++i) {
        if (i >= static_cast<int64_t>(w.bytes->size()) / size_of(dtype)) break;
        if (dtype == DType::f32) {
          auto& v = reinterpret_cast<float*>(w.bytes->data())[i];
          if (std::abs(v) > 1e4f) v = std::copysign(1e4f, v);
        } else {
          auto& v = reinterpret_cast<uint16_t*>(w.bytes->data())[i];
          if (std::abs(f32_from_bf16(v)) > 1e4f) v = static_cast<uint16_t>((v & 0x8000) | 0x461c);
        }
      }
      Packed p;
      const Status packed = pack_guarded(w.view, spec, &p);
      ASSERT_TRUE(packed.ok()) << packed.text;
      const Status checked = check(p.view, p.sizes);
      ASSERT_TRUE(checked.ok()) << checked.text;
      EXPECT_EQ(p.nbytes(), formula(p.view));
      Guarded<float> out(static_cast<size_t>(w.view.rows * w.view.cols));
      ASSERT_TRUE(unpack(p.view, out.data(), w.view.cols).ok());
      expect_keep(w, spec, p);
      int64_t group = 0;
      for (int64_t r = 0; r < w.view.rows; ++r) {
        for (int64_t c = 0; c < w.view.cols; c += spec.group_size) {
          if (!stored(w, spec, r, c)) continue;
          const float scale = f32_from_f16((*p.group_scales)[static_cast<size_t>(2 * group)]);
          float low = 0, high = 0;
          for (int64_t j = c; j < c + spec.group_size; ++j) {
            const float wanted = w.kept(r, j) ? value_of(w.bits(r, j), dtype) : 0;
            const float got = out[static_cast<size_t>(r * w.view.cols + j)];
            low = std::min(low, wanted);
            high = std::max(high, wanted);
            ASSERT_LE(std::abs(double{got} - wanted), 0.5001 * scale) << r << ", " << j;
            if (wanted == 0) {
              ASSERT_EQ(got, 0.0f) << r << ", " << j;
            }
          }
          const double needed = (double{high} - low) / highest;
          ASSERT_GE(scale, needed * (1 - 1e-6));
          ASSERT_LE(scale, std::max(needed * (1 + 0x1p-10), needed + 0x1p-24));
          ++group;
        }
      }
      EXPECT_EQ(2 * group, p.sizes.group_scales);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, GroupTrip, testing::ValuesIn(group_samples()),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(Formats, RoundTrip, testing::ValuesIn(samples()),
                         [](const auto& info) { return info.param.name; });

// Golden bytes: the layout comments, spelled out once by hand for a 2 x 5 matrix.
TEST(Golden, Layouts) {
  const float w[10] = {1, 0, 2, 0, -0.0f, 0, 3, 0, 4, 5};
  const DenseView view{.data = w, .rows = 2, .cols = 5, .stride = 5};
  const auto floats = [](const Packed& p) {
    const auto* v = reinterpret_cast<const float*>(p.values->data());
    return std::vector<float>(v, v + p.view.nnz);
  };
  const auto list = [](const auto& a) { return std::vector(a->span().begin(), a->span().end()); };
  Packed bitmap, csr, nm, block, codes;
  ASSERT_TRUE(pack_guarded(view, {.format = Format::bitmap}, &bitmap).ok());
  EXPECT_EQ(floats(bitmap), (std::vector<float>{1, 2, 3, 4, 5}));
  EXPECT_EQ(list(bitmap.mask), (std::vector<uint64_t>{0b00101, 0b11010}));
  EXPECT_EQ(list(bitmap.row_offsets), (std::vector<int64_t>{0, 2, 5}));

  ASSERT_TRUE(pack_guarded(view, {.format = Format::csr}, &csr).ok());
  EXPECT_EQ(floats(csr), (std::vector<float>{1, 2, 3, 4, 5}));
  EXPECT_EQ(list(csr.col_indices), (std::vector<int32_t>{0, 2, 1, 3, 4}));

  // Row 0 has two nonzeros and is filled up with its lowest zero.
  ASSERT_TRUE(pack_guarded(view, {.format = Format::nm, .keep = 3, .of = 5}, &nm).ok());
  EXPECT_EQ(floats(nm), (std::vector<float>{1, 0, 2, 3, 4, 5}));
  EXPECT_EQ(list(nm.mask), (std::vector<uint64_t>{0b00111, 0b11010}));

  ASSERT_TRUE(
      pack_guarded(view, {.format = Format::block, .block_rows = 2, .block_cols = 1}, &block).ok());
  EXPECT_EQ(floats(block), (std::vector<float>{1, 0, 0, 3, 2, 0, 0, 4, 0, 5}));
  EXPECT_EQ(list(block.col_indices), (std::vector<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(list(block.row_offsets), (std::vector<int64_t>{0, 5}));

  ASSERT_TRUE(
      pack_guarded(view, {.format = Format::bitmap, .dtype = DType::i8, .group_size = 3}, &codes)
          .ok());
  EXPECT_EQ(list(codes.scales), (std::vector<float>{2 / 127.f, 0, 3 / 127.f, 5 / 127.f}));
  const auto* c = reinterpret_cast<const int8_t*>(codes.values->data());
  // 1 / (2/127) = 63.5 rounds to the even 64; 4 / (5/127) = 101.6.
  EXPECT_EQ(std::vector<int>(c, c + 5), (std::vector<int>{64, 127, 127, 102, 127}));
}

TEST(Golden, GroupLayout) {
  // Three groups of 16; the middle one is dropped.
  float w[48] = {};
  for (int j = 0; j < 16; ++j) w[j] = static_cast<float>(j) - 5;  // -5 to 10: a step of 1
  w[32] = 30;                                                     // 0 to 30: a step of 2
  w[47] = 4;
  Packed p;
  const DenseView view{.data = w, .rows = 1, .cols = 48, .stride = 48};
  const PackSpec spec{.format = Format::groupq, .dtype = DType::u4, .group_size = 16};
  ASSERT_TRUE(pack_guarded(view, spec, &p).ok());
  EXPECT_EQ((*p.mask)[0], 0b101u);
  EXPECT_EQ((*p.row_offsets)[1], 2);
  const auto list = [](const auto& a) { return std::vector(a->span().begin(), a->span().end()); };
  EXPECT_EQ(list(p.group_scales), (std::vector<uint16_t>{0x3c00, f16_from_f32(5), 0x4000, 0}));
  std::vector<uint8_t> codes;
  for (int j = 0; j < 8; ++j) codes.push_back(static_cast<uint8_t>(j | (j + 8) << 4));
  codes.insert(codes.end(), {15, 0, 0, 0, 0, 0, 0, 2 << 4});
  EXPECT_EQ(list(p.values), codes);
}

TEST(PackErrors, NameTheArgument) {
  const float w[8] = {1, 2, 3, 4, 5, 6, 7, INFINITY};
  const uint8_t keep[8] = {1, 1, 1, 0, 1, 0, 0, 0};
  const DenseView view{.data = w, .rows = 2, .cols = 4, .stride = 4};
  DenseView masked = view, narrow = view, negative = view, huge = view, null = view, codes = view;
  masked.keep = keep;
  narrow.stride = 3;
  negative.rows = -1;
  huge.cols = int64_t{1} << 31;
  null.data = nullptr;
  codes.dtype = DType::i8;
  const PackSpec nm{.format = Format::nm, .keep = 2, .of = 4};
  const struct {
    DenseView w;
    PackSpec spec;
    Code code;
    const char* text;
  } cases[] = {
      {view, nm, Code::invalid_argument,
       "pack: w: got 4 kept weights in row 0, columns 0 to 3, wanted 2 of every 4"},
      {masked, nm, Code::invalid_argument,
       "pack: keep: got 3 kept weights in row 0, columns 0 to 3, wanted 2 of every 4"},
      {view,
       {.format = Format::nm, .keep = 2, .of = 3},
       Code::invalid_argument,
       "pack: cols: got 4, wanted a multiple of the 3 columns of a group"},
      {view,
       {.format = Format::nm, .keep = 5, .of = 4},
       Code::invalid_argument,
       "pack: keep, of: got 5 of 4, wanted 1 <= keep <= of <= 32"},
      {view,
       {.format = Format::block, .block_rows = 2, .block_cols = 3},
       Code::invalid_argument,
       "pack: block: got 2 x 3, wanted a divisor of the shape 2 x 4"},
      {view,
       {.format = Format::block},
       Code::invalid_argument,
       "pack: block: got 0 x 0, wanted at least 1 x 1"},
      {view,
       {.dtype = DType::f16},
       Code::unsupported_dtype,
       "pack: dtype: got f16 from f32 weights, wanted the weights' own f32, f16 or bf16, or i8"},
      {codes,
       {.dtype = DType::i8},
       Code::unsupported_dtype,
       "pack: dtype: got i8 from i8 weights, wanted the weights' own f32, f16 or bf16, or i8"},
      {view,
       {.dtype = DType::i8},
       Code::invalid_argument,
       "pack: w: got Inf or NaN among the kept weights of row 1, wanted finite weights for i8 "
       "values"},
      {view,
       {.group_size = 2},
       Code::invalid_argument,
       "pack: group_size: got 2, wanted 0 unless values are i8"},
      {view,
       {.dtype = DType::i8, .group_size = -1},
       Code::invalid_argument,
       "pack: group_size: got -1, wanted 1 to 2147483647, or 0 for whole rows"},
      {view,
       {.format = Format::groupq},
       Code::unsupported_dtype,
       "pack: dtype: got f32 for groupq, wanted u4 or u8 for groupq and for no other format"},
      {view,
       {.dtype = DType::u4},
       Code::unsupported_dtype,
       "pack: dtype: got u4 for bitmap, wanted u4 or u8 for groupq and for no other format"},
      {view,
       {.format = Format::groupq, .dtype = DType::u4, .group_size = 8},
       Code::invalid_argument,
       "pack: group_size: got 8, wanted 16 or 32 for groupq"},
      {view,
       {.format = Format::groupq, .dtype = DType::u4, .group_size = 16},
       Code::invalid_argument,
       "pack: cols: got 4, wanted a multiple of the 16 columns of a group"},
      {narrow, {}, Code::invalid_argument, "pack: w: got a row stride of 3, wanted at least 4"},
      {negative,
       {},
       Code::invalid_argument,
       "pack: rows, cols: got -1 x 4, wanted 0 to 2147483647 each"},
      {huge,
       {},
       Code::invalid_argument,
       "pack: rows, cols: got 2 x 2147483648, wanted 0 to 2147483647 each"},
      {null, {}, Code::invalid_argument, "pack: w: got a null pointer, wanted 2 x 4 weights"},
  };
  for (const auto& c : cases) {
    Packed p;
    const Status s = pack_guarded(c.w, c.spec, &p);
    EXPECT_EQ(s.code, c.code);
    EXPECT_STREQ(s.text, c.text);
  }
  // A weight that is not kept may be anything.
  Packed p;
  EXPECT_TRUE(pack_guarded(masked, {.dtype = DType::i8}, &p).ok());
}

}  // namespace
}  // namespace tamis::test
