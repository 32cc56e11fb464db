// Which launches a call of attention becomes, and how their blocks spread.
#include <gtest/gtest.h>

#include <span>
#include <tuple>

#include "ops/sparse_attention/attention_params.h"

namespace tamis::test {
namespace {

constexpr CudaDevice kH100{
    .capability = 90, .sms = 132, .shared_per_sm = 233472, .shared_per_block = 232448};

// The tail's launch waits for what was before, so that pages begin beside it; pages of which one
// block is planned for an SM take so much of it that no SM gets two.
TEST(AttentionPlan, MostTilesComeLastAndBlocksSpread) {
  alignas(16) static const uint8_t memory[16] = {};
  alignas(16) static float out[16];
  const KvSegment pages{
      .storage = KvStorage::pages, .layout = {128, 32, 4, 4, 32}, .tokens = 32000, .keys = memory};
  const KvSegment tail{.storage = KvStorage::bf16, .tokens = 128, .keys = memory, .values = memory};
  for (const CudaDevice& device :
       {kH100,
        CudaDevice{
            .capability = 80, .sms = 108, .shared_per_sm = 167936, .shared_per_block = 166912}}) {
    for (const bool tail_first : {false, true}) {
      KvSegment biased = tail;
      biased.bias = out;
      const KvSegment segments[] = {tail_first ? biased : pages, tail_first ? pages : biased};
      const SparseAttentionCudaArgs args{.attention = {.q_dtype = DType::bf16,
                                                       .batch = 8,
                                                       .kv_heads = 8,
                                                       .rows = 4,
                                                       .head_dim = 128,
                                                       .q = memory,
                                                       .out = out,
                                                       .segments = segments}};
      AttentionPlan plans[kMaxSegments];
      int32_t splits = 0;
      const Status status = plan_attention(args.attention, device, plans, &splits);
      ASSERT_TRUE(status.ok()) << status.text;
      EXPECT_EQ(plans[0].segment, tail_first ? 0 : 1);
      EXPECT_EQ(plans[1].segment, tail_first ? 1 : 0);
      EXPECT_EQ(plans[1].first_split, plans[0].splits);
      EXPECT_FALSE(attention_params(args, plans[0], splits).last);
      EXPECT_TRUE(attention_params(args, plans[1], splits).last);
      EXPECT_LE(plans[1].shared_bytes, device.shared_per_block);
      EXPECT_GT(2 * (plans[1].shared_bytes + 1024), device.shared_per_sm);
    }
  }
}

// Dense tokens without a list are read by the blocks of 4-bit pages, if each has a warp of its own.
TEST(AttentionPlan, PagesTakeTheTailWithThem) {
  alignas(16) static const uint8_t memory[16] = {};
  alignas(16) static float out[16];
  const auto launches = [&](int64_t batch, int32_t bits, int64_t tokens, bool tail_first,
                            int64_t paged = 16000) {
    const KvSegment pages{.storage = KvStorage::pages,
                          .layout = {128, 32, bits, bits, 32},
                          .tokens = paged,
                          .keys = memory};
    const KvSegment tail{
        .storage = KvStorage::bf16, .tokens = tokens, .keys = memory, .values = memory};
    const KvSegment segments[] = {tail_first ? tail : pages, tail_first ? pages : tail};
    const SparseAttentionCudaArgs args{.attention = {.q_dtype = DType::bf16,
                                                     .batch = batch,
                                                     .kv_heads = 8,
                                                     .rows = 4,
                                                     .head_dim = 128,
                                                     .q = memory,
                                                     .out = out,
                                                     .segments = segments}};
    AttentionPlan plans[kMaxSegments];
    int32_t splits = 0, count = 0;
    EXPECT_TRUE(plan_attention(args.attention, kH100, plans, &splits).ok());
    for (const AttentionPlan& plan : std::span(plans, 2)) {
      if (plan.splits == 0) continue;
      ++count;
      EXPECT_LE(plan.shared_bytes, kH100.shared_per_block);
      const AttentionCudaParams p = attention_params(args, plan, splits);
      EXPECT_EQ(p.tail.tokens, plan.tail >= 0 ? tokens : 0);
      if (plan.tail < 0) continue;
      EXPECT_EQ(plan.tail, tail_first ? 0 : 1);
      EXPECT_TRUE(p.last);
      EXPECT_EQ(plan.splits, splits);
      EXPECT_GE(plan.shared_bytes, plan.tail_at + 8 * tail_shared(128));
    }
    return count;
  };
  for (const bool tail_first : {false, true}) {
    EXPECT_EQ(launches(1, 4, 128, tail_first), 1);
    EXPECT_EQ(launches(8, 4, 256, tail_first), 1);
    EXPECT_EQ(launches(8, 4, 257, tail_first), 2) << "17 tiles for two blocks of eight warps";
    EXPECT_EQ(launches(1, 8, 128, tail_first), 2) << "not measured";
    EXPECT_EQ(launches(1, 4, 128, tail_first, 32000), 1);
    EXPECT_EQ(launches(8, 4, 128, tail_first, 32000), 2) << "62 pages a warp";
  }
}

// Two blocks of a head meet through shared memory where they are all that a call launches.
TEST(AttentionPlan, TwoBlocksOfAHeadAreACluster) {
  alignas(16) static const uint8_t memory[16] = {};
  alignas(16) static float out[16];
  const KvSegment tail{.storage = KvStorage::bf16, .tokens = 128, .keys = memory, .values = memory};
  const auto plan = [&](const CudaDevice& device, int64_t batch, int32_t bits, bool with_tail) {
    const KvSegment pages{.storage = KvStorage::pages,
                          .layout = {128, 32, bits, bits, 32},
                          .tokens = 32000,
                          .keys = memory};
    const KvSegment segments[] = {pages, tail};
    const SparseAttentionCudaArgs args{
        .attention = {.q_dtype = DType::bf16,
                      .batch = batch,
                      .kv_heads = 8,
                      .rows = 4,
                      .head_dim = 128,
                      .q = memory,
                      .out = out,
                      .segments = std::span(segments).first(with_tail ? 2 : 1)}};
    AttentionPlan plans[kMaxSegments];
    int32_t splits = 0;
    const Status status = plan_attention(args.attention, device, plans, &splits);
    EXPECT_TRUE(status.ok()) << status.text;
    const AttentionPlan& found = plans[with_tail ? 1 : 0];
    EXPECT_EQ(attention_params(args, found, splits).cluster, found.cluster);
    EXPECT_TRUE(!found.cluster || splits == 2);
    const AttentionCudaRow& row = *choose_attention_cuda(pages, 128);
    if (found.cluster) {
      EXPECT_GE(found.shared_bytes, row.shared_bytes + 4 * attention_partial(128));
    }
    return found.cluster;
  };
  EXPECT_TRUE(plan(kH100, 8, 4, false));
  EXPECT_FALSE(plan(kH100, 1, 4, false)) << "more blocks than two";
  EXPECT_FALSE(plan(kH100, 8, 8, false)) << "not measured";
  EXPECT_FALSE(plan(kH100, 8, 4, true)) << "two launches";
  const CudaDevice older{
      .capability = 80, .sms = 128, .shared_per_sm = 167936, .shared_per_block = 166912};
  EXPECT_FALSE(plan(older, 8, 4, false));
}

// Few long tiles are spread, too, over as many blocks as leave each warp one.
TEST(AttentionPlan, FewPagesOf64TokensSpread) {
  alignas(16) static const uint8_t memory[16] = {};
  alignas(16) static float out[16];
  for (const auto& [tokens, batch, wanted] :
       {std::tuple{63 * 64, 1, 8}, {64 * 64, 8, 2}, {512 * 64, 1, 16}, {512 * 64, 8, 2}}) {
    const KvSegment pages{.storage = KvStorage::pages,
                          .layout = {128, 64, 4, 4, 128},
                          .tokens = tokens,
                          .keys = memory};
    const SparseAttentionArgs args{.q_dtype = DType::bf16,
                                   .batch = batch,
                                   .kv_heads = 8,
                                   .rows = 4,
                                   .head_dim = 128,
                                   .q = memory,
                                   .out = out,
                                   .segments = std::span(&pages, 1)};
    AttentionPlan plans[kMaxSegments];
    int32_t splits = 0;
    ASSERT_TRUE(plan_attention(args, kH100, plans, &splits).ok());
    EXPECT_EQ(splits, wanted) << tokens << " tokens, batch of " << batch;
  }
}

}  // namespace
}  // namespace tamis::test
