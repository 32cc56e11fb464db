// kv_gather against a plain copy, and kv_merge on every ISA level of this host against the
// reference in double: dtypes, head sizes, ragged counts, both similarities; with guard pages after
// each array.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "base/numeric.h"
#include "base/parallel.h"
#include "fewer.h"
#include "guarded.h"
#include "ops/kv_edit/kv_edit.h"

namespace tamis::test {
namespace {

constexpr IsaBits kLevels[] = {isa::kScalar, isa::avx2, isa::avx512, isa::avx512bf16, isa::neon};

void put(uint8_t* data, DType type, size_t i, float v) {
  if (type == DType::f32) {
    reinterpret_cast<float*>(data)[i] = v;
  } else {
    reinterpret_cast<uint16_t*>(data)[i] = type == DType::f16 ? f16_from_f32(v) : bf16_from_f32(v);
  }
}

double get(const uint8_t* data, DType type, size_t i) {
  if (type == DType::f32) return reinterpret_cast<const float*>(data)[i];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(data)[i];
  return type == DType::f16 ? f32_from_f16(bits) : f32_from_bf16(bits);
}

// Tokens [heads, tokens]: of each head a share of 1 in 3 is kept, the others dropped.
struct Lists {
  std::vector<int32_t> kept, dropped, kept_count, dropped_count;

  Lists(int64_t heads, int64_t tokens, std::mt19937* random)
      : kept(static_cast<size_t>(heads * tokens)), dropped(kept.size()) {
    for (int64_t h = 0; h < heads; ++h) {
      int32_t k = 0, d = 0;
      for (int32_t t = 0; t < tokens; ++t) {
        if ((*random)() % 3 == 0) {
          kept[static_cast<size_t>(h * tokens + k++)] = t;
        } else {
          dropped[static_cast<size_t>(h * tokens + d++)] = t;
        }
      }
      kept_count.push_back(k);
      dropped_count.push_back(d);
    }
  }
};

TEST(KvEdit, GathersAndClosesUpInPlace) {
  std::mt19937 random(3);
  const int64_t heads = 5, tokens = 61;
  for (const int64_t row : {1, 4, 24, 256}) {
    const Lists lists(heads, tokens, &random);
    Guarded<uint8_t> x(static_cast<size_t>(heads * tokens * row)), out(x.size());
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(random());
    const std::vector<uint8_t> before(x.data(), x.data() + x.size());
    KvGatherArgs args{.heads = heads,
                      .tokens = tokens,
                      .row_bytes = row,
                      .x = x.data(),
                      .head_stride_bytes = tokens * row,
                      .token_stride_bytes = row,
                      .index = {lists.kept.data(), tokens, lists.kept_count.data()},
                      .out = out.data(),
                      .out_head_stride_bytes = tokens * row,
                      .out_token_stride_bytes = row};
    ASSERT_TRUE(kv_gather(args).ok());
    args.out = x.data();
    ASSERT_TRUE(kv_gather(args).ok());
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < lists.kept_count[static_cast<size_t>(h)] * row; ++i) {
        const int64_t token = lists.kept[static_cast<size_t>(h * tokens + i / row)];
        const uint8_t wanted = before[static_cast<size_t>((h * tokens + token) * row + i % row)];
        ASSERT_EQ(out[static_cast<size_t>(h * tokens * row + i)], wanted);
        ASSERT_EQ(x[static_cast<size_t>(h * tokens * row + i)], wanted);
      }
    }
  }
}

struct Case {
  DType dtype = DType::f32;
  int64_t heads = 3, tokens = 50, head_dim = 32;
  KvSimilarity similarity = KvSimilarity::keys_values;
  float tau = 0.05f;
  bool weights = true;
};

void expect_reference(const Case& c, int threads = 1) {
  static uint64_t number = 0;
  if (!keeps_case(number++)) return;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  const auto count = static_cast<size_t>(c.heads * c.tokens * c.head_dim);
  const auto size = count * static_cast<size_t>(size_of(c.dtype));
  Guarded<uint8_t> keys(size), values(size), out_keys(size), out_values(size);
  for (size_t i = 0; i < count; ++i) {
    put(keys.data(), c.dtype, i, normal(random));
    put(values.data(), c.dtype, i, normal(random));
  }
  for (size_t i = 0; i < static_cast<size_t>(c.head_dim); ++i) put(keys.data(), c.dtype, i, 0.0f);
  const Lists lists(c.heads, c.tokens, &random);
  const auto all = static_cast<size_t>(c.heads * c.tokens);
  std::vector<float> weight(all), mass(all), out_mass(all);
  std::vector<int32_t> joined(all);
  for (size_t i = 0; i < all; ++i) {
    weight[i] = static_cast<float>(random() % 100) / 100.0f;
    mass[i] = static_cast<float>(random() % 5 + 1);
  }
  const KvMergeArgs args{.dtype = c.dtype,
                         .heads = c.heads,
                         .tokens = c.tokens,
                         .head_dim = c.head_dim,
                         .keys = keys.data(),
                         .values = values.data(),
                         .key_head_stride = c.tokens * c.head_dim,
                         .key_token_stride = c.head_dim,
                         .value_head_stride = c.tokens * c.head_dim,
                         .value_token_stride = c.head_dim,
                         .weight = c.weights ? weight.data() : nullptr,
                         .mass = c.weights ? mass.data() : nullptr,
                         .kept = {lists.kept.data(), c.tokens, lists.kept_count.data()},
                         .dropped = {lists.dropped.data(), c.tokens, lists.dropped_count.data()},
                         .similarity = c.similarity,
                         .tau = c.tau,
                         .out_keys = out_keys.data(),
                         .out_values = out_values.data(),
                         .out_mass = out_mass.data(),
                         .joined = joined.data()};
  std::vector<double> k(count), v(count), m(all), best(all), chosen(all);
  const double unit = c.dtype == DType::f32 ? 0 : c.dtype == DType::f16 ? 0x1p-10 : 0x1p-7;
  set_num_threads(threads);
  for (const IsaBits isa : kLevels) {
    if ((isa & host_isa()) != isa) continue;
    std::fill(joined.begin(), joined.end(), -7);
    const Status status = kv_merge_on(isa, args);
    ASSERT_TRUE(status.ok()) << status.text;
    ASSERT_TRUE(
        kv_merge_reference(args, k.data(), v.data(), m.data(), best.data(), chosen.data()).ok());
    for (int64_t h = 0; h < c.heads; ++h) {
      for (int64_t i = 0; i < lists.dropped_count[static_cast<size_t>(h)]; ++i) {
        const auto at = static_cast<size_t>(h * c.tokens + i);
        if (joined[at] >= 0) {  // the nearest, and near enough
          ASSERT_NEAR(chosen[at], best[at], 1e-5) << isa_name(isa);
          ASSERT_GT(best[at], c.tau - 1e-5) << isa_name(isa);
        } else {
          ASSERT_EQ(joined[at], -1);
          ASSERT_LT(best[at], c.tau + 1e-5) << isa_name(isa);
        }
      }
      for (int64_t i = 0; i < lists.kept_count[static_cast<size_t>(h)]; ++i) {
        const auto at = static_cast<size_t>(h * c.tokens + i);
        ASSERT_EQ(out_mass[at], m[at]) << isa_name(isa);
        for (int64_t d = 0; d < c.head_dim; ++d) {
          const size_t e = at * static_cast<size_t>(c.head_dim) + static_cast<size_t>(d);
          ASSERT_NEAR(get(out_keys.data(), c.dtype, e), k[e], 1e-5 + 4 * unit) << isa_name(isa);
          ASSERT_NEAR(get(out_values.data(), c.dtype, e), v[e], 1e-5 + 4 * unit) << isa_name(isa);
        }
      }
    }
  }
  set_num_threads(0);
}

TEST(KvEdit, Merges) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const KvSimilarity s : {KvSimilarity::keys, KvSimilarity::keys_values}) {
      for (const int64_t d : {16, 48, 64, 80, 96, 128, 256}) {
        expect_reference({.dtype = dtype, .head_dim = d, .similarity = s});
      }
      for (const float tau : {-2.0f, 0.0f, 0.2f, 1.0f}) {
        expect_reference({.dtype = dtype, .similarity = s, .tau = tau}, 2);
        expect_reference({.dtype = dtype, .similarity = s, .tau = tau, .weights = false});
      }
      for (const int64_t n : {1, 2, 5, 300}) {
        expect_reference({.dtype = dtype, .heads = 2, .tokens = n, .similarity = s});
      }
    }
  }
}

TEST(KvEdit, RefusesWhatItCannotRead) {
  std::vector<float> memory(256);
  const int32_t descending[] = {2, 1}, far[] = {9};
  KvGatherArgs gather{.heads = 1,
                      .tokens = 4,
                      .row_bytes = 4,
                      .x = memory.data(),
                      .index = {descending, 2},
                      .out = memory.data()};
  EXPECT_STREQ(kv_gather(gather).text, "kv_gather: index: got 1, wanted ascending tokens");
  gather.index = {far, 1};
  EXPECT_STREQ(kv_gather(gather).text, "kv_gather: index: got 9, wanted tokens that there are");
  KvMergeArgs merge{.heads = 1, .tokens = 4, .head_dim = 24};
  EXPECT_EQ(kv_merge(merge).code, Code::invalid_argument);
  merge.head_dim = 16;
  merge.kept = {far, 1};
  EXPECT_EQ(kv_merge(merge).code, Code::invalid_argument);
  merge.dtype = DType::i8;
  EXPECT_EQ(kv_merge(merge).code, Code::unsupported_dtype);
}

}  // namespace
}  // namespace tamis::test
