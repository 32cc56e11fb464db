// Which launches a call of attention becomes, and how their blocks spread.
#include <gtest/gtest.h>

#include <span>
#include <tuple>

#include "cuda_sim/devices.h"
#include "ops/sparse_attention/attention_params.h"

namespace tamis::test {
namespace {

alignas(16) const uint8_t kMemory[16] = {};  // of every segment, which plans do not read
alignas(16) float out[16];

KvSegment pages_of(int32_t bits, int64_t tokens) {
  return {.storage = KvStorage::pages,
          .layout = {128, 32, bits, bits, 32},
          .tokens = tokens,
          .keys = kMemory};
}
KvSegment tail_of(int64_t tokens) {
  return {.storage = KvStorage::bf16, .tokens = tokens, .keys = kMemory, .values = kMemory};
}

SparseAttentionCudaArgs call(std::span<const KvSegment> segments, int64_t batch) {
  return {.attention = {.q_dtype = DType::bf16,
                        .batch = batch,
                        .kv_heads = 8,
                        .rows = 4,
                        .head_dim = 128,
                        .q = kMemory,
                        .out = out,
                        .segments = segments}};
}

// The tail's launch waits for what was before, so that pages begin beside it; pages of which one
// block is planned for an SM take so much of it that no SM gets two.
TEST(AttentionPlan, MostTilesComeLastAndBlocksSpread) {
  const KvSegment pages = pages_of(4, 32000), tail = tail_of(128);
  for (const CudaDevice& device : {kH100, kA100}) {
    for (const bool tail_first : {false, true}) {
      KvSegment biased = tail;
      biased.bias = out;
      const KvSegment segments[] = {tail_first ? biased : pages, tail_first ? pages : biased};
      const SparseAttentionCudaArgs args = call(segments, 8);
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
  const auto launches = [&](int64_t batch, int32_t bits, int64_t tokens, bool tail_first,
                            int64_t paged = 16000) {
    const KvSegment pages = pages_of(bits, paged), tail = tail_of(tokens);
    const KvSegment segments[] = {tail_first ? tail : pages, tail_first ? pages : tail};
    const SparseAttentionCudaArgs args = call(segments, batch);
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
  const auto plan = [&](const CudaDevice& device, int64_t batch, int32_t bits, bool with_tail) {
    const KvSegment segments[] = {pages_of(bits, 32000), tail_of(128)};
    const SparseAttentionCudaArgs args = call(std::span(segments).first(with_tail ? 2 : 1), batch);
    AttentionPlan plans[kMaxSegments];
    int32_t splits = 0;
    const Status status = plan_attention(args.attention, device, plans, &splits);
    EXPECT_TRUE(status.ok()) << status.text;
    const AttentionPlan& found = plans[with_tail ? 1 : 0];
    EXPECT_EQ(attention_params(args, found, splits).cluster, found.cluster);
    EXPECT_TRUE(!found.cluster || splits == 2);
    const AttentionCudaRow& row = *choose_attention_cuda(segments[0], 128);
    if (found.cluster) {
      EXPECT_GE(found.shared_bytes, row.shared_bytes + 4 * attention_partial(128));
    }
    return found.cluster;
  };
  EXPECT_TRUE(plan(kH100, 8, 4, false));
  EXPECT_FALSE(plan(kH100, 1, 4, false)) << "more blocks than two";
  EXPECT_FALSE(plan(kH100, 8, 8, false)) << "not measured";
  EXPECT_FALSE(plan(kH100, 8, 4, true)) << "two launches";
  EXPECT_FALSE(plan(kA100, 8, 4, false)) << "no clusters there";
}

// Few long tiles are spread, too, over as many blocks as leave each warp one.
TEST(AttentionPlan, FewPagesOf64TokensSpread) {
  for (const auto& [tokens, batch, wanted] :
       {std::tuple{63 * 64, 1, 8}, {64 * 64, 8, 2}, {512 * 64, 1, 16}, {512 * 64, 8, 2}}) {
    KvSegment pages = pages_of(4, tokens);
    pages.layout = {128, 64, 4, 4, 128};
    const SparseAttentionCudaArgs args = call(std::span(&pages, 1), batch);
    AttentionPlan plans[kMaxSegments];
    int32_t splits = 0;
    ASSERT_TRUE(plan_attention(args.attention, kH100, plans, &splits).ok());
    EXPECT_EQ(splits, wanted) << tokens << " tokens, batch of " << batch;
  }
}

}  // namespace
}  // namespace tamis::test
