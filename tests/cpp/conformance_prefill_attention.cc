// Every kernel of this host against the reference in double: causal or not, padding, spans,
// blocks, subsets and all of them together, head sizes, dtypes, groups, lengths around a tile; with
// guard pages after each array and NaN in tokens that padding hides.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/numeric.h"
#include "base/parallel.h"
#include "fewer.h"
#include "format/matrix.h"
#include "guarded.h"
#include "ops/prefill_attention/prefill_attention.h"

namespace tamis {
void prefill_attention_bf16_amx_simulated(const PrefillPart& part);
}

namespace tamis::test {
namespace {

// Every kernel that this host runs, and that for AMX with its tiles simulated.
std::vector<PrefillRow> kernels() {
  std::vector<PrefillRow> found;
  for (const PrefillRow& row : prefill_attention_kernels()) {
    if ((row.isa & host_isa()) == row.isa) found.push_back(row);
  }
#if defined(__x86_64__)
  found.push_back({"simulated", isa::avx512vbmi2, true, &prefill_tile_floats,
                   &prefill_attention_bf16_amx_simulated});
  if ((isa::avx512vbmi2 & host_isa()) != isa::avx512vbmi2) found.pop_back();
#endif
  return found;
}

struct Case {
  DType q_dtype = DType::f32, kv_dtype = DType::f32;
  int64_t batch = 2, heads = 4, kv_heads = 2, queries = 70, tokens = 70, head_dim = 32;
  bool causal = true, padding = false, spans = false, rows = false, columns = false;
  int64_t block = 0, pattern_heads = 1;
  float softcap = 0, scale = 0;  // scale 0: 1 / sqrt(d)

  std::string text() const {
    char s[200];
    std::snprintf(s, sizeof s,
                  "q=%s kv=%s b%lld h%lld g%lld n%lld s%lld d%lld%s%s%s%s%s block=%lld heads=%lld",
                  name_of(q_dtype), name_of(kv_dtype), static_cast<long long>(batch),
                  static_cast<long long>(heads), static_cast<long long>(kv_heads),
                  static_cast<long long>(queries), static_cast<long long>(tokens),
                  static_cast<long long>(head_dim), causal ? " causal" : "",
                  padding ? " padding" : "", spans ? " spans" : "", rows ? " rows" : "",
                  columns ? " columns" : "", static_cast<long long>(block),
                  static_cast<long long>(pattern_heads));
    return s;
  }
};

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

// Keys, values or queries [b, heads, tokens, d]; NaN before token hidden[b].
std::unique_ptr<Guarded<uint8_t>> make(DType type, int64_t batch, int64_t heads, int64_t tokens,
                                       int64_t d, const std::vector<int32_t>& hidden,
                                       std::mt19937* random) {
  std::normal_distribution<float> normal;
  auto x = std::make_unique<Guarded<uint8_t>>(
      static_cast<size_t>(batch * heads * tokens * d * size_of(type)));
  size_t i = 0;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < heads * tokens; ++t) {
      const bool hide = !hidden.empty() && t % tokens < hidden[static_cast<size_t>(b)];
      for (int64_t c = 0; c < d; ++c) put(x->data(), type, i++, hide ? NAN : normal(*random));
    }
  }
  return x;
}

// About half of the numbers below n, ascending, `width` places a batch.
std::vector<int32_t> choose(int64_t batch, int64_t n, std::vector<int32_t>* count,
                            std::mt19937* random) {
  std::vector<int32_t> all(static_cast<size_t>(batch * n), -1);
  for (int64_t b = 0; b < batch; ++b) {
    int32_t found = 0;
    for (int64_t i = 0; i < n; ++i) {
      if ((*random)() % 2) all[static_cast<size_t>(b * n + found++)] = static_cast<int32_t>(i);
    }
    count->push_back(found);
  }
  return all;
}

void expect_reference(const Case& c, int threads = 1) {
  static uint64_t number = 0;
  if (!keeps_case(number++)) return;
  std::mt19937 random(7);
  std::vector<int32_t> begin;
  for (int64_t b = 0; c.padding && b < c.batch; ++b) begin.push_back(static_cast<int32_t>(9 * b));
  const auto q = make(c.q_dtype, c.batch, c.heads, c.queries, c.head_dim, {}, &random);
  const auto k = make(c.kv_dtype, c.batch, c.kv_heads, c.tokens, c.head_dim, begin, &random);
  std::mt19937 v_random = random;
  auto v = make(c.kv_dtype, c.batch, c.kv_heads, c.tokens, c.head_dim, begin, &random);
  const int64_t d = c.head_dim;
  std::vector<int32_t> sink, window, offsets, blocks, row_count, column_count;
  for (int64_t h = 0; h < c.pattern_heads; ++h) {
    sink.push_back(static_cast<int32_t>(h * 3));
    window.push_back(static_cast<int32_t>(5 + 20 * h));
  }
  const int64_t each = c.block ? ceil_div(c.tokens, c.block) : 0, stride = each * each;
  blocks.resize(static_cast<size_t>(c.pattern_heads * stride));
  for (int64_t h = 0; c.block && h < c.pattern_heads; ++h) {
    int32_t found = 0;
    offsets.push_back(0);
    for (int64_t i = 0; i < each; ++i) {
      for (int64_t j = 0; j < each; ++j) {
        if (random() % 3 == 0) {
          blocks[static_cast<size_t>(h * stride + found++)] = static_cast<int32_t>(j);
        }
      }
      offsets.push_back(found);
    }
  }
  const auto rows = choose(c.batch, c.queries, &row_count, &random);
  const auto columns = choose(c.batch, c.tokens, &column_count, &random);
  const auto count = static_cast<size_t>(c.batch * c.heads * c.queries * d);
  Guarded<uint8_t> out(count * static_cast<size_t>(size_of(c.q_dtype)));
  std::vector<float> lse(count / static_cast<size_t>(d));
  PrefillArgs args{.q_dtype = c.q_dtype,
                   .kv_dtype = c.kv_dtype,
                   .batch = c.batch,
                   .heads = c.heads,
                   .kv_heads = c.kv_heads,
                   .queries = c.queries,
                   .tokens = c.tokens,
                   .head_dim = d,
                   .q = {q->data(), c.heads * c.queries * d, c.queries * d, d},
                   .keys = {k->data(), c.kv_heads * c.tokens * d, c.tokens * d, d},
                   .values = {v->data(), c.kv_heads * c.tokens * d, c.tokens * d, d},
                   .out = out.data(),
                   .out_batch_stride = c.heads * c.queries * d,
                   .out_head_stride = c.queries * d,
                   .out_token_stride = d,
                   .lse = lse.data(),
                   .scale = c.scale != 0 ? c.scale : 1.0f / std::sqrt(static_cast<float>(d)),
                   .softcap = c.softcap,
                   .causal = c.causal,
                   .first = c.tokens - c.queries,
                   .begin = c.padding ? begin.data() : nullptr,
                   .pattern_heads = c.pattern_heads,
                   .sink = c.spans ? sink.data() : nullptr,
                   .window = c.spans ? window.data() : nullptr};
  if (c.block) args.blocks = {c.block, offsets.data(), blocks.data(), stride};
  if (c.rows) args.rows = {rows.data(), c.queries, row_count.data()};
  if (c.columns) args.columns = {columns.data(), c.tokens, column_count.data()};
  std::vector<double> wanted(count), wanted_lse(lse.size());
  ASSERT_TRUE(prefill_attention_reference(args, wanted.data(), wanted_lse.data()).ok());
  const double unit = c.q_dtype == DType::f32 ? 0 : c.q_dtype == DType::f16 ? 0x1p-10 : 0x1p-7;
  // Kernels for bf16 round each weight, so outputs differ by half a unit of the sum of p |v|.
  std::vector<double> sums(count);
  const bool rounds = c.q_dtype == DType::bf16 && c.kv_dtype == DType::bf16;
  if (rounds) {
    for (size_t i = 0; i < v->size(); i += 2) v->data()[i + 1] &= 0x7f;
    ASSERT_TRUE(prefill_attention_reference(args, sums.data(), nullptr).ok());
    v = make(c.kv_dtype, c.batch, c.kv_heads, c.tokens, d, begin, &v_random);
    args.values.data = v->data();
  }
  set_num_threads(threads);
  for (const PrefillRow& kernel : kernels()) {
    if (kernel.bf16 && !rounds) continue;
    std::fill(out.data(), out.data() + out.size(), uint8_t{0});
    std::fill(lse.begin(), lse.end(), -INFINITY);
    const Status status = prefill_attention_by(kernel, args);
    ASSERT_TRUE(status.ok()) << status.text;
    for (size_t i = 0; i < count; ++i) {
      const double most = kernel.bf16 ? unit / 2 * (std::abs(wanted[i]) + sums[i]) : unit;
      ASSERT_NEAR(get(out.data(), c.q_dtype, i), wanted[i], 3e-5 + most)
          << c.text() << " " << kernel.name << " at " << i;
    }
    for (size_t i = 0; i < lse.size(); ++i) {
      if (std::isinf(wanted_lse[i])) {
        ASSERT_EQ(lse[i], -INFINITY) << c.text() << " " << kernel.name << " at " << i;
      } else {
        ASSERT_NEAR(lse[i], wanted_lse[i], 3e-5) << c.text() << " " << kernel.name;
      }
    }
  }
  set_num_threads(0);
}

TEST(PrefillAttention, Patterns) {
  for (int bits = 0; bits < 64; ++bits) {
    for (const int64_t pattern_heads : {1, 2, 4}) {
      Case c{.causal = (bits & 1) == 0,
             .padding = (bits & 2) != 0,
             .spans = (bits & 4) != 0,
             .rows = (bits & 8) != 0,
             .columns = (bits & 16) != 0,
             .block = (bits & 32) != 0 ? 16 : 0,
             .pattern_heads = pattern_heads};
      expect_reference(c);
      c.queries = 11;
      expect_reference(c);
      c.queries = 70;
      c.q_dtype = c.kv_dtype = DType::bf16;
      expect_reference(c);
    }
  }
}

TEST(PrefillAttention, HeadSizesAndTypes) {
  for (const DType q : {DType::f32, DType::f16, DType::bf16}) {
    for (const DType kv : {DType::f32, DType::f16, DType::bf16}) {
      for (const int64_t d : {16, 48, 64, 80, 96, 128, 256}) {
        expect_reference({.q_dtype = q, .kv_dtype = kv, .batch = 1, .head_dim = d});
      }
    }
  }
}

TEST(PrefillAttention, LengthsGroupsAndBlocks) {
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const int64_t n : {1, 63, 64, 65, 130}) {
      for (const int64_t heads : {1, 3, 9}) {
        Case c{.q_dtype = type,
               .kv_dtype = type,
               .batch = 1,
               .heads = heads,
               .kv_heads = 1,
               .queries = n,
               .tokens = n};
        expect_reference(c);
        c.tokens = n + 77;
        expect_reference(c);
        c.block = 48;
        expect_reference(c, 3);
        c.block = 128;
        c.softcap = 2.5f;
        expect_reference(c, 2);
        c.scale = -0.3f;
        expect_reference(c);
      }
    }
  }
  // More tokens than a thread keeps rewritten.
  expect_reference({.q_dtype = DType::bf16,
                    .kv_dtype = DType::bf16,
                    .batch = 1,
                    .heads = 1,
                    .kv_heads = 1,
                    .queries = 65,
                    .tokens = 8300,
                    .head_dim = 256});
  // More heads than a tile has queries.
  expect_reference({.batch = 1, .heads = 300, .kv_heads = 1, .queries = 3, .tokens = 5});
}

#if defined(__x86_64__)
TEST(PrefillAttention, TilesTakeWhatIsAllBf16) {
  const auto chosen = [](DType q, DType kv, IsaBits isa) {
    return std::string(choose_prefill_attention(q, kv, isa).name);
  };
  EXPECT_EQ(chosen(DType::bf16, DType::bf16, isa::amx), "prefill_attention_bf16_amx");
  EXPECT_EQ(chosen(DType::f32, DType::bf16, isa::amx), "prefill_attention_avx512");
  EXPECT_EQ(chosen(DType::bf16, DType::f16, isa::amx), "prefill_attention_avx512");
  EXPECT_EQ(chosen(DType::bf16, DType::bf16, isa::avx512bf16), "prefill_attention_avx512");
}
#endif

TEST(PrefillAttention, RefusesWhatItCannotRead) {
  std::vector<float> memory(64 * 64);
  const int32_t descending[] = {3, 2}, far[] = {64}, zero[] = {0}, offsets[] = {0, 2};
  PrefillArgs good{.batch = 1,
                   .heads = 1,
                   .kv_heads = 1,
                   .queries = 4,
                   .tokens = 4,
                   .head_dim = 16,
                   .q = {memory.data(), 0, 0, 16},
                   .keys = {memory.data(), 0, 0, 16},
                   .values = {memory.data(), 0, 0, 16},
                   .out = memory.data() + 2048,
                   .out_token_stride = 16};
  ASSERT_TRUE(prefill_attention(good).ok());
  PrefillArgs a = good;
  a.columns = {descending, 2};
  EXPECT_STREQ(prefill_attention(a).text,
               "prefill_attention: columns: got 2, wanted ascending numbers");
  a = good;
  a.rows = {far, 1};
  EXPECT_EQ(prefill_attention(a).code, Code::invalid_argument);
  a = good;
  a.sink = a.window = zero;
  EXPECT_STREQ(prefill_attention(a).text, "prefill_attention: window: got 0, wanted 1 or more");
  a = good;
  a.blocks = {4, offsets, zero, 1};
  EXPECT_EQ(prefill_attention(a).code, Code::invalid_argument);
  a = good;
  a.pattern_heads = 3;
  EXPECT_EQ(prefill_attention(a).code, Code::invalid_argument);
  a = good;
  a.head_dim = 24;
  EXPECT_EQ(prefill_attention(a).code, Code::invalid_argument);
  a = good;
  a.kv_dtype = DType::i8;
  EXPECT_EQ(prefill_attention(a).code, Code::unsupported_dtype);
  a = good;
  a.keys.data = nullptr;
  EXPECT_EQ(prefill_attention(a).code, Code::invalid_argument);
}

}  // namespace
}  // namespace tamis::test
