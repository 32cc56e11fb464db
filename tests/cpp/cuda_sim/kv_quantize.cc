// kv_quantize and kv_append_labels on the simulator: records bit for bit those of the CPU, guard
// pages round every array.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "base/numeric.h"
#include "cuda_sim/data.h"
#include "ops/kv_quantize/kv_page.cuh"
#include "ops/kv_select/labels.cuh"

namespace tamis::test {
namespace {

// Numbers of all sizes, with runs of equal ones and what f16 cannot hold.
float awkward(std::mt19937_64& random, int64_t i) {
  const float x = std::normal_distribution<float>()(random);
  switch (i / 97 % 7) {
    case 0:
      return 0.25f;
    case 1:
      return x * 1e-6f;
    case 2:
      return x * 3e4f;
    case 3:
      return i % 31 == 0 ? 1e30f : -x;
    default:
      return x;
  }
}

TEST(KvQuantize, MakesTheRecordsOfTheCpu) {
  uint64_t seed = 10;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const KvPageLayout layout :
         {KvPageLayout{128, 32, 4, 4, 32}, KvPageLayout{64, 32, 2, 8, 32},
          KvPageLayout{48, 16, 8, 2, 16}, KvPageLayout{64, 64, 2, 4, 64}}) {
      std::mt19937_64 random(++seed);
      const int64_t heads = 2, pages = 2, d = layout.head_dim, stride = d + 3;
      const int64_t count = heads * pages * layout.tokens * stride;
      Guarded<float> keys(static_cast<size_t>(count)), values(static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i) {
        put(dtype, keys.data(), i, awkward(random, i));
        put(dtype, values.data(), i, awkward(random, i + 50));
      }
      auto got = memory(heads * pages * layout.bytes());
      auto wanted = memory(heads * pages * layout.bytes());
      std::memset(got->data(), 0xff, got->size() * 16);
      std::memset(wanted->data(), 0xff, wanted->size() * 16);
      KvQuantizeArgs args{.layout = layout,
                          .dtype = dtype,
                          .heads = heads,
                          .pages = pages,
                          .keys = keys.data(),
                          .values = values.data(),
                          .key_head_stride = pages * layout.tokens * stride,
                          .key_token_stride = stride,
                          .value_head_stride = pages * layout.tokens * stride,
                          .value_token_stride = stride,
                          .out = wanted->data(),
                          .out_stride_bytes = pages * layout.bytes()};
      ASSERT_TRUE(kv_quantize_reference(args).ok());
      args.out = got->data();
      const KvQuantizeParams params = kv_quantize_params(args);
      ASSERT_EQ(sim::launch({.grid = {static_cast<uint32_t>(pages), static_cast<uint32_t>(heads)},
                             .block = {kQuantizeThreads},
                             .shared_bytes = static_cast<size_t>(quantize_shared(layout)),
                             .seed = seed},
                            [&] { kv_quantize_page(params); }),
                "");
      ASSERT_EQ(std::memcmp(got->data(), wanted->data(), got->size() * 16), 0)
          << "d " << d << ", bits " << layout.key_bits << ", " << name_of(dtype);
    }
  }
}

TEST(KvAppendLabels, MakesTheRecordsOfTheCpu) {
  uint64_t seed = 30;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int32_t r : {8, 32, 72, 128}) {
      std::mt19937_64 random(++seed);
      const KvLabelLayout layout{.channels = r};
      const int64_t heads = 3, d = 128, tokens = 300, records = ceil_div(tokens, kLabelTokens);
      Guarded<float> keys(static_cast<size_t>(heads * tokens * d));
      for (int64_t i = 0; i < heads * tokens * d; ++i)
        put(dtype, keys.data(), i, awkward(random, i));
      std::vector<int32_t> channels;
      for (int64_t i = 0; i < heads * r; ++i) {
        channels.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(d)));
      }
      auto got = memory(heads * records * layout.bytes());
      auto wanted = memory(heads * records * layout.bytes());
      std::memset(got->data(), 0xff, got->size() * 16);
      // In three calls, the middle one of one token.
      for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 21}, {21, 1}, {22, 278}}) {
        KvAppendLabelsArgs args{.labels = layout,
                                .keys_dtype = dtype,
                                .batch = 1,
                                .kv_heads = heads,
                                .head_dim = d,
                                .keys = reinterpret_cast<const uint8_t*>(keys.data()) +
                                        first * d * (dtype == DType::f32 ? 4 : 2),
                                .key_batch_stride = 0,
                                .key_head_stride = tokens * d,
                                .key_token_stride = d,
                                .channels = channels.data(),
                                .first = first,
                                .count = count,
                                .records = wanted->data(),
                                .head_stride_bytes = records * layout.bytes()};
        ASSERT_TRUE(kv_append_labels(args).ok());
        args.records = got->data();
        const LabelParams params = label_params(args);
        ASSERT_EQ(
            sim::launch(
                {.grid = {static_cast<uint32_t>(label_blocks(args)), static_cast<uint32_t>(heads)},
                 .block = {kEstimateThreads},
                 .seed = seed},
                [&] { r <= 32 ? append_labels<4>(params) : append_labels<16>(params); }),
            "");
      }
      ASSERT_EQ(std::memcmp(got->data(), wanted->data(), got->size() * 16), 0) << r;
    }
  }
}

}  // namespace
}  // namespace tamis::test
