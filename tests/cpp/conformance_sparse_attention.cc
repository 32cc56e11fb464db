// Every storage on every ISA level of this host against the reference in double: head sizes, rows,
// lengths around a tile and a task, index lists, begin and end, biases, softcap, several segments;
// with guard pages after each array.
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
#include "guarded.h"
#include "ops/kv_quantize/kv_quantize.h"
#include "ops/sparse_attention/sparse_attention.h"

namespace tamis::test {
namespace {

constexpr IsaBits kLevels[] = {isa::kScalar,    isa::avx2,     isa::avx512, isa::avx512vbmi2,
                               isa::avx512bf16, isa::amx,      isa::neon,   isa::neon_dot,
                               isa::neon_fhm,   isa::neon_bf16};

void put(void* data, DType type, size_t i, float v) {
  if (type == DType::f32) {
    static_cast<float*>(data)[i] = v;
  } else {
    static_cast<uint16_t*>(data)[i] = type == DType::f16 ? f16_from_f32(v) : bf16_from_f32(v);
  }
}

double get(const void* data, DType type, size_t i) {
  if (type == DType::f32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return type == DType::f16 ? f32_from_f16(bits) : f32_from_bf16(bits);
}

struct Case {
  KvStorage storage;
  DType q_dtype;
  int64_t batch = 2, kv_heads = 2, rows = 3, head_dim = 64, tokens = 70;
  KvPageLayout layout = {};
  bool index = false, bounds = false, bias = false;
  float softcap = 0;
  int64_t rank = 21, pairs = 24;  // of keys of low rank

  std::string text() const {
    char s[200];
    std::snprintf(s, sizeof s,
                  "%s q=%s rows=%lld d=%lld tokens=%lld bits=%d/%d rank=%lld%s%s%s softcap=%g",
                  name_of(storage), name_of(q_dtype), static_cast<long long>(rows),
                  static_cast<long long>(head_dim), static_cast<long long>(tokens), layout.key_bits,
                  layout.value_bits, static_cast<long long>(rank), index ? " index" : "",
                  bounds ? " bounds" : "", bias ? " bias" : "", static_cast<double>(softcap));
    return s;
  }
};

// The memory of one segment of `tokens` tokens.
struct Memory {
  Memory(const Case& c, int64_t tokens, std::mt19937* random) {
    const bool pages = c.storage == KvStorage::pages;
    const KvStorage elements = elements_of(c.storage);
    const DType type = elements == KvStorage::f16    ? DType::f16
                       : elements == KvStorage::bf16 ? DType::bf16
                                                     : DType::f32;
    const int64_t heads = c.batch * c.kv_heads, count = heads * tokens * c.head_dim;
    const auto size = static_cast<size_t>(count * size_of(type));
    keys = std::make_unique<Guarded<uint8_t>>(size);
    values = std::make_unique<Guarded<uint8_t>>(size);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
      put(keys->data(), type, i, normal(*random));
      put(values->data(), type, i, normal(*random) + 0.5f);
    }
    segment = {.storage = c.storage,
               .layout = c.layout,
               .tokens = tokens,
               .keys = keys->data(),
               .values = values->data(),
               .key_batch_stride = c.kv_heads * tokens * c.head_dim,
               .key_head_stride = tokens * c.head_dim,
               .key_token_stride = c.head_dim,
               .value_batch_stride = c.kv_heads * tokens * c.head_dim,
               .value_head_stride = tokens * c.head_dim,
               .value_token_stride = c.head_dim};
    if (pages) quantize(c, heads, tokens);
    if (elements != c.storage) factor(c, tokens, type, random);
    lists(c, heads, tokens, random);
  }

  void quantize(const Case& c, int64_t heads, int64_t tokens) {
    const int64_t count = tokens / c.layout.tokens, stride = count * c.layout.bytes();
    records = std::make_unique<Guarded<uint8_t>>(static_cast<size_t>(heads * stride));
    const KvQuantizeArgs args{.layout = c.layout,
                              .dtype = DType::f32,
                              .heads = heads,
                              .pages = count,
                              .keys = keys->data(),
                              .values = values->data(),
                              .key_head_stride = segment.key_head_stride,
                              .key_token_stride = c.head_dim,
                              .value_head_stride = segment.key_head_stride,
                              .value_token_stride = c.head_dim,
                              .out = records->data(),
                              .out_stride_bytes = stride};
    ASSERT_TRUE(kv_quantize(args).ok());
    segment.keys = records->data();
    segment.values = nullptr;
    segment.key_batch_stride = c.kv_heads * stride;
    segment.key_head_stride = stride;
  }

  // Coordinates and basis such that keys are of size one, and turns of angles t * 0.9^c.
  void factor(const Case& c, int64_t tokens, DType type, std::mt19937* random) {
    const int64_t heads = c.batch * c.kv_heads, d = c.head_dim;
    const auto fill = [&](int64_t count, float scale) {
      auto made = std::make_unique<Guarded<uint8_t>>(static_cast<size_t>(count * size_of(type)));
      std::normal_distribution<float> normal(0.0f, scale);
      for (int64_t i = 0; i < count; ++i) {
        put(made->data(), type, static_cast<size_t>(i), normal(*random));
      }
      return made;
    };
    keys = fill(c.batch * tokens * c.rank, 1.0f);
    basis = fill(heads * c.rank * d, 1.0f / std::sqrt(static_cast<float>(c.rank)));
    const int64_t rows = kTurnFine + (tokens + kTurnFine - 1) / kTurnFine;
    turns = std::make_unique<Guarded<float>>(static_cast<size_t>(rows * 2 * c.pairs));
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = r < kTurnFine ? r : (r - kTurnFine) * kTurnFine;
      for (int64_t p = 0; p < c.pairs; ++p) {
        const double angle = static_cast<double>(token) * std::pow(0.9, static_cast<double>(p));
        turns->data()[r * 2 * c.pairs + p] = static_cast<float>(std::cos(angle));
        turns->data()[(r * 2 + 1) * c.pairs + p] = static_cast<float>(std::sin(angle));
      }
    }
    segment.keys = keys->data();
    segment.key_batch_stride = tokens * c.rank;
    segment.key_head_stride = 0;
    segment.key_token_stride = c.rank;
    segment.low_rank = {
        .rank = c.rank, .basis = basis->data(), .pairs = c.pairs, .turns = turns->data()};
  }

  void lists(const Case& c, int64_t heads, int64_t tokens, std::mt19937* random) {
    const int64_t unit = c.storage == KvStorage::pages ? c.layout.tokens : 1;
    const int64_t units = tokens / unit, kept = (units + 1) / 2;
    if (c.index) {
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<int32_t> all(static_cast<size_t>(units));
        for (int64_t i = 0; i < units; ++i) all[static_cast<size_t>(i)] = static_cast<int32_t>(i);
        std::shuffle(all.begin(), all.end(), *random);
        std::sort(all.begin(), all.begin() + kept);
        index.insert(index.end(), all.begin(), all.begin() + kept);
        counts.push_back(static_cast<int32_t>(kept - h % 2));
      }
      segment.index = index.data();
      segment.index_stride = kept;
      segment.count = counts.data();
    }
    for (int64_t h = 0; h < heads; ++h) {
      begins.push_back(static_cast<int32_t>(h * 3 - 1));
      ends.push_back(static_cast<int32_t>(tokens - h * 5 + 2));
    }
    if (c.bounds) {
      segment.begin = begins.data();
      segment.end = ends.data();
    }
    for (int64_t i = 0; i < heads * tokens; ++i) {
      bias.push_back(0.01f * static_cast<float>(i % 101) - 0.3f);
    }
    if (c.bias) segment.bias = bias.data();
  }

  std::unique_ptr<Guarded<uint8_t>> keys, values, records, basis;
  std::unique_ptr<Guarded<float>> turns;
  std::vector<int32_t> index, counts, begins, ends;
  std::vector<float> bias;
  KvSegment segment;
};

// Errors of out, relative to values of size one. f32: sums of d and of n products, 2^-24 each,
// under an exponential of scores of size 4: 3e-5. bf16 products round the weights, and for pages
// the folded factors too, by up to 2^-9 each, half of it on average and with both signs: the sum
// over tokens with weights p errs by about 2^-10 * |p|_2 and by what the scores err, 2^-10 * |q||k|
// / sqrt(d): below 6e-3. 8-bit codes reach 128 from their middle, so theirs err most. Factors of 16
// bits (AVX-512 VNNI) err by up to 1.5 * 2^-15 of the largest one, so scores by some 2e-4.
double tolerance(const Case& c, IsaBits isa) {
  const bool pages = c.storage == KvStorage::pages;
  const bool integers = pages && (isa & isa::kAvx512Vbmi2) != 0;
  const bool rounds = !integers && (isa & (isa::kAvx512Bf16 | isa::kNeonBf16)) != 0 &&
                      (pages || (c.storage == KvStorage::bf16 && c.q_dtype == DType::bf16));
  const double unit = c.q_dtype == DType::f32 ? 0 : c.q_dtype == DType::f16 ? 0x1p-10 : 0x1p-7;
  return (rounds ? 1.2e-2 : integers ? 3e-4 : 3e-5) + unit;
}

void expect_reference(const Case& c, int threads = 1) {
  static uint64_t number = 0;
  if (!keeps_case(number++)) return;
  std::mt19937 random(11);
  Memory first(c, c.tokens, &random);
  Case other = c;
  other.storage = KvStorage::f32;  // a dense tail beside it
  other.index = other.bias = other.bounds = false;
  Memory second(other, 37, &random);
  const KvSegment segments[] = {first.segment, second.segment};
  const int64_t heads = c.batch * c.kv_heads, count = heads * c.rows * c.head_dim;
  const auto size = static_cast<size_t>(count * size_of(c.q_dtype));
  Guarded<uint8_t> q(size), out(size);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    put(q.data(), c.q_dtype, i, normal(random));
  }
  std::vector<float> lse(static_cast<size_t>(heads * c.rows));
  const SparseAttentionArgs args{.q_dtype = c.q_dtype,
                                 .batch = c.batch,
                                 .kv_heads = c.kv_heads,
                                 .rows = c.rows,
                                 .head_dim = c.head_dim,
                                 .q = q.data(),
                                 .out = out.data(),
                                 .lse = lse.data(),
                                 .scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim)),
                                 .softcap = c.softcap,
                                 .segments = segments};
  std::vector<double> wanted(static_cast<size_t>(count)), wanted_lse(lse.size());
  ASSERT_TRUE(sparse_attention_reference(args, wanted.data(), wanted_lse.data()).ok());
  set_num_threads(threads);
  for (const IsaBits isa : kLevels) {
    if ((isa & host_isa()) != isa) continue;
    std::fill(out.data(), out.data() + size, uint8_t{0xff});
    const Status status = sparse_attention_on(isa, args);
    ASSERT_TRUE(status.ok()) << status.text;
    for (size_t i = 0; i < wanted.size(); ++i) {
      ASSERT_NEAR(get(out.data(), c.q_dtype, i), wanted[i], tolerance(c, isa))
          << c.text() << " " << isa_name(isa) << " at " << i;
    }
    for (size_t i = 0; i < lse.size(); ++i) {
      ASSERT_NEAR(lse[i], wanted_lse[i], tolerance(c, isa)) << c.text() << " " << isa_name(isa);
    }
  }
  set_num_threads(0);
}

std::vector<Case> storages() {
  std::vector<Case> all;
  for (const DType q : {DType::f32, DType::f16, DType::bf16}) {
    for (const KvStorage s : {KvStorage::f32, KvStorage::f16, KvStorage::bf16}) {
      all.push_back({.storage = s, .q_dtype = q});
    }
    for (const KvStorage s :
         {KvStorage::lowrank_f32, KvStorage::lowrank_f16, KvStorage::lowrank_bf16}) {
      all.push_back({.storage = s, .q_dtype = q});
    }
    for (const int bits : {2, 4, 8}) {
      all.push_back({.storage = KvStorage::pages,
                     .q_dtype = q,
                     .tokens = 96,
                     .layout = {.head_dim = 64, .key_bits = bits, .value_bits = bits}});
    }
  }
  return all;
}

TEST(SparseAttention, RowsAndLists) {
  for (Case c : storages()) {
    for (const int64_t rows : {1, 2, 3, 4, 9}) {
      c.rows = rows;
      c.index = c.bounds = c.bias = false;
      expect_reference(c);
      c.index = true;
      expect_reference(c);
      c.bounds = true;
      expect_reference(c);
      c.index = false;
      expect_reference(c);
      c.bias = true;
      expect_reference(c);
    }
    c.softcap = 2.5f;
    expect_reference(c);
  }
}

TEST(SparseAttention, HeadSizes) {
  for (Case c : storages()) {
    for (const int d : {16, 48, 64, 80, 96, 128, 256}) {
      c.head_dim = d;
      c.layout.head_dim = d;
      c.layout.group = d % 32 == 0 ? 32 : 16;
      c.pairs = d == 96 ? 13 : d / 2;  // fewer where only a part of the channels turns
      expect_reference(c);
      c.layout.group = d;
      expect_reference(c);
    }
  }
}

TEST(SparseAttention, LengthsAroundTilesAndTasks) {
  for (Case c : storages()) {
    c.batch = 1;
    c.kv_heads = 1;
    for (const int64_t n : {0, 1, 31, 32, 33, 511, 512, 513, 1100}) {
      c.tokens = c.storage == KvStorage::pages ? n / 32 * 32 : n;
      expect_reference(c);
    }
  }
}

TEST(SparseAttention, RanksAroundWhatIsWidenedAtOnce) {
  for (const int64_t rank : {1, 16, 170, 255, 256, 257, 600}) {
    for (const KvStorage s : {KvStorage::lowrank_f32, KvStorage::lowrank_bf16}) {
      Case c{.storage = s, .q_dtype = DType::f32, .head_dim = 128, .index = true};
      c.rank = rank;
      for (const int64_t pairs : {0, 64}) {
        c.pairs = pairs;
        expect_reference(c);
      }
    }
  }
}

TEST(SparseAttention, PageSizesAndMixedBits) {
  for (const int tokens : {16, 32, 48, 64}) {
    for (const int key_bits : {2, 4, 8}) {
      for (const int value_bits : {2, 4, 8}) {
        Case c{.storage = KvStorage::pages, .q_dtype = DType::f32, .tokens = 4 * tokens};
        c.layout = {
            .head_dim = 64, .tokens = tokens, .key_bits = key_bits, .value_bits = value_bits};
        c.bounds = true;
        expect_reference(c);
      }
    }
  }
}

TEST(SparseAttention, ThreadsChangeNoBit) {
  for (Case c : storages()) {
    c.tokens = c.storage == KvStorage::pages ? 1600 : 1601;
    c.kv_heads = 1;
    expect_reference(c, 3);
  }
}

// A list that names tokens before `begin` at its start, and the same list without them.
TEST(SparseAttention, PaddingThatAListNamesChangesNoBit) {
  constexpr int64_t kHidden = 5;  // units of each list
  for (Case c : storages()) {
    c.tokens = c.storage == KvStorage::pages ? 1600 : 1601;
    c.index = true;
    std::mt19937 random(3);
    Memory m(c, c.tokens, &random);
    const int64_t heads = c.batch * c.kv_heads, count = heads * c.rows * c.head_dim;
    const int64_t unit = c.storage == KvStorage::pages ? c.layout.tokens : 1;
    std::vector<int32_t> index(m.index.size()), counts, begin;
    for (int64_t h = 0; h < heads; ++h) {
      const auto list = m.index.begin() + h * m.segment.index_stride;
      std::copy(list + kHidden, list + m.segment.index_stride,
                index.begin() + h * m.segment.index_stride);
      counts.push_back(m.counts[static_cast<size_t>(h)] - int32_t{kHidden});
      begin.push_back(static_cast<int32_t>(list[kHidden] * unit));
    }
    KvSegment named = m.segment, cut = m.segment;
    named.begin = begin.data();
    cut.index = index.data();
    cut.count = counts.data();
    const auto size = static_cast<size_t>(count * size_of(c.q_dtype));
    std::vector<uint8_t> q(size), with(size), without(size);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
      put(q.data(), c.q_dtype, i, normal(random));
    }
    for (const IsaBits isa : kLevels) {
      if ((isa & host_isa()) != isa) continue;
      const auto run = [&](const KvSegment& segment, std::vector<uint8_t>* out) {
        return sparse_attention_on(isa, {.q_dtype = c.q_dtype,
                                         .batch = c.batch,
                                         .kv_heads = c.kv_heads,
                                         .rows = c.rows,
                                         .head_dim = c.head_dim,
                                         .q = q.data(),
                                         .out = out->data(),
                                         .segments = {&segment, 1}});
      };
      ASSERT_TRUE(run(named, &with).ok());
      ASSERT_TRUE(run(cut, &without).ok());
      EXPECT_EQ(with, without) << c.text() << " " << isa_name(isa);
    }
  }
}

TEST(SparseAttention, NothingSeenIsZero) {
  std::vector<float> q(64, 1.0f), out(64, 7.0f), lse(1), memory(64 * 40, 1.0f);
  const int32_t end = 0;
  const KvSegment segments[] = {{.storage = KvStorage::f32,
                                 .tokens = 40,
                                 .keys = memory.data(),
                                 .values = memory.data(),
                                 .key_token_stride = 64,
                                 .value_token_stride = 64,
                                 .end = &end}};
  const SparseAttentionArgs args{.batch = 1,
                                 .kv_heads = 1,
                                 .rows = 1,
                                 .head_dim = 64,
                                 .q = q.data(),
                                 .out = out.data(),
                                 .lse = lse.data(),
                                 .segments = segments};
  ASSERT_TRUE(sparse_attention(args).ok());
  EXPECT_EQ(out, std::vector<float>(64, 0.0f));
  EXPECT_EQ(lse[0], -INFINITY);
}

TEST(SparseAttention, RefusesWhatItCannotRead) {
  std::vector<float> memory(64 * 4);
  const int32_t index[] = {0, 4}, count = 3;
  KvSegment segment{.tokens = 4,
                    .keys = memory.data(),
                    .values = memory.data(),
                    .key_token_stride = 64,
                    .value_token_stride = 64,
                    .index = index,
                    .index_stride = 2};
  SparseAttentionArgs args{.batch = 1,
                           .kv_heads = 1,
                           .rows = 1,
                           .head_dim = 64,
                           .q = memory.data(),
                           .out = memory.data(),
                           .segments = {&segment, 1}};
  EXPECT_STREQ(sparse_attention(args).text, "sparse_attention: index: got 4, wanted 0 to 3");
  segment.index = nullptr;
  segment.count = &count;
  segment.tokens = 2;
  EXPECT_STREQ(sparse_attention(args).text, "sparse_attention: count: got 3, wanted 0 to 2");
  segment.count = nullptr;
  segment.keys = nullptr;
  EXPECT_EQ(sparse_attention(args).code, Code::invalid_argument);
  segment.keys = memory.data();
  segment.storage = KvStorage::lowrank_f32;
  EXPECT_STREQ(sparse_attention(args).text,
               "sparse_attention: basis: got rank 0 and null, wanted an array of at least one row");
  segment.low_rank = {.rank = 1, .basis = memory.data(), .pairs = 33, .turns = memory.data()};
  EXPECT_STREQ(sparse_attention(args).text,
               "sparse_attention: turns: got 33 pairs, wanted a table of 0 to 32");
  segment.storage = KvStorage::f32;
  args.head_dim = 65;
  EXPECT_EQ(sparse_attention(args).code, Code::invalid_argument);
  args.head_dim = 64;
  args.q_dtype = DType::i8;
  EXPECT_EQ(sparse_attention(args).code, Code::unsupported_dtype);
}

TEST(SparseAttention, ChoosesTheBestKernel) {
  const auto name = [](KvStorage s, DType q, IsaBits isa) {
    return std::string(choose_sparse_attention(s, q, isa)->name);
  };
#if defined(__x86_64__)
  EXPECT_EQ(name(KvStorage::bf16, DType::bf16, isa::avx512bf16),
            "sparse_attention_bf16_bf16_avx512bf16");
  for (const IsaBits xeon : {isa::avx512fp16, isa::amx}) {  // vdpbf16ps is slow
    EXPECT_EQ(name(KvStorage::bf16, DType::bf16, xeon), "sparse_attention_bf16_f32_avx512");
  }
  EXPECT_EQ(name(KvStorage::bf16, DType::f32, isa::avx512bf16), "sparse_attention_bf16_f32_avx512");
  EXPECT_EQ(name(KvStorage::f16, DType::f16, isa::avx2), "sparse_attention_f16_f32_avx2");
  for (const IsaBits level : {isa::avx512vbmi2, isa::avx512bf16, isa::amx}) {
    EXPECT_EQ(name(KvStorage::pages, DType::bf16, level), "sparse_attention_pages_f32_avx512vbmi2");
  }
#elif defined(__aarch64__)
  EXPECT_EQ(name(KvStorage::bf16, DType::bf16, isa::neon_bf16),
            "sparse_attention_bf16_bf16_neon_bf16");
  EXPECT_EQ(name(KvStorage::bf16, DType::bf16, isa::neon_fhm), "sparse_attention_bf16_f32_neon");
  EXPECT_EQ(name(KvStorage::pages, DType::bf16, isa::neon_bf16),
            "sparse_attention_pages_f32_neon_bf16");
#endif
  EXPECT_EQ(name(KvStorage::pages, DType::f32, isa::kScalar), "sparse_attention_pages_f32_scalar");
}

}  // namespace
}  // namespace tamis::test
