// Every row of kv_quantize/kernels.def against the reference, bit for bit, with guard pages after
// each array; and the laws of the format: what unpacks lies within half a step of what was packed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "fewer.h"
#include "guarded.h"
#include "ops/kv_quantize/kv_quantize.h"

namespace tamis::test {
namespace {

enum class Values { normal, outliers, equal, tiny, huge, zeros };

void put(void* data, DType type, size_t i, float v) {
  if (type == DType::f32) {
    static_cast<float*>(data)[i] = v;
  } else {
    static_cast<uint16_t*>(data)[i] = type == DType::f16 ? f16_from_f32(v) : bf16_from_f32(v);
  }
}

float get(const void* data, DType type, size_t i) {
  if (type == DType::f32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return type == DType::f16 ? f32_from_f16(bits) : f32_from_bf16(bits);
}

struct Problem {
  Problem(const KvPageLayout& layout, DType dtype, Values values)
      : count(static_cast<size_t>(kHeads * kPages * layout.tokens * layout.head_dim)),
        keys(count * static_cast<size_t>(size_of(dtype))),
        values(count * static_cast<size_t>(size_of(dtype))) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (auto* side : {&keys, &this->values}) {
      for (size_t i = 0; i < count; ++i) {
        float x = normal(random);
        if (values == Values::outliers && i % 37 == 0) x *= 50;
        if (values == Values::equal) x = 0.3f;
        if (values == Values::tiny) x *= 1e-7f;
        if (values == Values::huge) x *= 3e4f;
        if (values == Values::zeros) x = i % 3 ? 0.0f : -0.0f;
        put(side->data(), dtype, i, x);
      }
    }
    const int64_t tokens = kPages * layout.tokens;
    args = {.layout = layout,
            .dtype = dtype,
            .heads = kHeads,
            .pages = kPages,
            .keys = keys.data(),
            .values = this->values.data(),
            .key_head_stride = tokens * layout.head_dim,
            .key_token_stride = layout.head_dim,
            .value_head_stride = tokens * layout.head_dim,
            .value_token_stride = layout.head_dim,
            .out = nullptr,
            .out_stride_bytes = kPages * layout.bytes()};
  }
  static constexpr int64_t kHeads = 2, kPages = 2;
  size_t count;
  Guarded<uint8_t> keys, values;
  KvQuantizeArgs args;
};

std::vector<KvPageLayout> layouts() {
  std::vector<KvPageLayout> all;
  for (const int bits : {2, 4, 8}) {
    all.push_back({.head_dim = 64, .key_bits = bits, .value_bits = bits});
    all.push_back({.head_dim = 80, .tokens = 16, .key_bits = 4, .value_bits = bits, .group = 16});
    all.push_back({.head_dim = 48, .tokens = 48, .key_bits = bits, .value_bits = 2, .group = 48});
    all.push_back({.head_dim = 256, .tokens = 64, .key_bits = bits, .value_bits = 8, .group = 128});
  }
  return all;
}

constexpr Values kValues[] = {Values::normal, Values::outliers, Values::equal,
                              Values::tiny,   Values::huge,     Values::zeros};

TEST(KvQuantize, EveryKernelIsTheReferenceBitForBit) {
  int ran = 0;
  uint64_t number = 0;
  for (const KvQuantizeRow& row : kv_quantize_kernels()) {
    if ((row.isa & host_isa()) != row.isa) {
      std::printf("SKIP %s\n", row.name);
      continue;
    }
    for (const KvPageLayout& layout : layouts()) {
      for (const Values values : kValues) {
        if (!keeps_case(number++)) continue;
        Problem p(layout, row.dtype, values);
        const auto size = static_cast<size_t>(p.kHeads * p.args.out_stride_bytes);
        Guarded<uint8_t> out(size), wanted(size);
        p.args.out = wanted.data();
        ASSERT_TRUE(kv_quantize_reference(p.args).ok());
        p.args.out = out.data();
        ASSERT_TRUE(kv_quantize_with(row, p.args).ok());
        ASSERT_TRUE(std::equal(out.data(), out.data() + size, wanted.data()))
            << row.name << " d=" << layout.head_dim << " bits=" << layout.key_bits << "/"
            << layout.value_bits << " values=" << static_cast<int>(values);
        ++ran;
      }
    }
  }
  EXPECT_GT(ran, 0);
}

// Largest error of a group of x under min + scale * code, in steps beyond the half that is allowed.
void expect_half_step(const std::vector<float>& x, const std::vector<float>& y, int bits) {
  const auto [low, high] = std::minmax_element(x.begin(), x.end());
  const float top = static_cast<float>((1 << bits) - 1);
  // The step is (high - low) / top plus what f16 adds to it: min rounds down by at most one unit,
  // scale up by one.
  const float unit = std::max(std::abs(*low) * 0x1p-10f, 0x1p-24f);
  const float step = ((*high - *low + unit) / top) * (1 + 0x1p-10f) + 0x1p-24f;
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_LE(std::abs(x[i] - y[i]), 0.5f * step * (1 + 1e-4f) + std::abs(x[i]) * 1e-6f)
        << x[i] << " became " << y[i] << " in [" << *low << ", " << *high << "], bits " << bits;
  }
}

TEST(KvQuantize, UnpacksWithinHalfAStep) {
  for (const KvPageLayout& layout : layouts()) {
    for (const Values values : {Values::normal, Values::outliers, Values::equal, Values::zeros}) {
      Problem p(layout, DType::f32, values);
      std::vector<uint8_t> out(static_cast<size_t>(p.kHeads * p.args.out_stride_bytes));
      p.args.out = out.data();
      ASSERT_TRUE(kv_quantize(p.args).ok());
      const auto d = static_cast<size_t>(layout.head_dim), n = static_cast<size_t>(layout.tokens);
      std::vector<float> keys(n * d), unpacked(n * d);
      for (int64_t page = 0; page < p.kHeads * p.kPages; ++page) {
        const size_t first = static_cast<size_t>(page) * n * d;
        unpack_kv_page(layout, out.data() + page * layout.bytes(), keys.data(), unpacked.data());
        for (size_t c = 0; c < d; ++c) {
          std::vector<float> x, y;
          for (size_t t = 0; t < n; ++t) {
            x.push_back(get(p.keys.data(), DType::f32, first + t * d + c));
            y.push_back(keys[t * d + c]);
          }
          expect_half_step(x, y, layout.key_bits);
        }
        const auto group = static_cast<size_t>(layout.group);
        for (size_t i = 0; i < n * d; i += group) {
          std::vector<float> x, y;
          for (size_t c = i; c < i + group; ++c) {
            x.push_back(get(p.values.data(), DType::f32, first + c));
            y.push_back(unpacked[c]);
          }
          expect_half_step(x, y, layout.value_bits);
        }
      }
    }
  }
}

TEST(KvQuantize, ANanIsNoTrap) {
  Problem p({.head_dim = 64}, DType::f32, Values::normal);
  put(p.keys.data(), DType::f32, 5, NAN);
  put(p.values.data(), DType::f32, 5, INFINITY);
  std::vector<uint8_t> out(static_cast<size_t>(p.kHeads * p.args.out_stride_bytes)), wanted = out;
  p.args.out = wanted.data();
  ASSERT_TRUE(kv_quantize_reference(p.args).ok());
  for (const KvQuantizeRow& row : kv_quantize_kernels()) {
    if (row.dtype != DType::f32 || (row.isa & host_isa()) != row.isa) continue;
    p.args.out = out.data();
    ASSERT_TRUE(kv_quantize_with(row, p.args).ok());
    EXPECT_EQ(out, wanted) << row.name;
  }
}

TEST(KvQuantize, RecordHasTheDocumentedSize) {
  // KIVI: 4 bits + 32 bits a group of 32 is 5 bits of 16.
  const KvPageLayout four{.head_dim = 128}, two{.head_dim = 128, .key_bits = 2, .value_bits = 2};
  EXPECT_EQ(four.bytes() * 16, 2 * 2 * 32 * 128 * 5);
  EXPECT_EQ(two.bytes() * 16, 2 * 2 * 32 * 128 * 3);
}

TEST(KvQuantize, RefusesWhatTheFormatHasNot) {
  const KvPageLayout bad[] = {{.head_dim = 24},
                              {.head_dim = 512},
                              {.head_dim = 64, .tokens = 8},
                              {.head_dim = 64, .tokens = 128},
                              {.head_dim = 64, .key_bits = 3},
                              {.head_dim = 64, .value_bits = 16},
                              {.head_dim = 80, .group = 32},
                              {.head_dim = 64, .group = 8}};
  for (const KvPageLayout& layout : bad) {
    EXPECT_EQ(kv_quantize({.layout = layout}).code, Code::invalid_argument);
  }
  EXPECT_EQ(kv_quantize({.layout = {.head_dim = 64}, .dtype = DType::i8}).code,
            Code::unsupported_dtype);
  EXPECT_EQ(kv_quantize({.layout = {.head_dim = 64}, .heads = 1, .pages = 1}).code,
            Code::invalid_argument);
  EXPECT_TRUE(kv_quantize({.layout = {.head_dim = 64}}).ok());
}

TEST(KvQuantize, ChoosesTheBestKernel) {
#if defined(__x86_64__)
  EXPECT_STREQ(choose_kv_quantize(DType::bf16, isa::avx512bf16)->name, "kv_quantize_bf16_avx512");
  EXPECT_STREQ(choose_kv_quantize(DType::f16, isa::avx2)->name, "kv_quantize_f16_avx2");
#endif
  EXPECT_STREQ(choose_kv_quantize(DType::f32, isa::kScalar)->name, "kv_quantize_f32_scalar");
}

}  // namespace
}  // namespace tamis::test
