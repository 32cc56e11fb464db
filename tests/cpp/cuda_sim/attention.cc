// Every row of sparse_attention/kernels_cuda.def on the simulator against the double reference:
// pages and dense tokens, lists, spans, biases, several segments, guard pages round every array.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "cuda_sim/attention_problem.h"

namespace tamis::test {
namespace {

std::vector<SimulatedRow> rows() {
  return {
#define TAMIS_ATTENTION_PAGES(name, bits, d, tokens, group) \
  {#name "_d" #d "_async",                                  \
   KvStorage::pages,                                        \
   bits,                                                    \
   d,                                                       \
   tokens,                                                  \
   group,                                                   \
   PageConfig<bits, d, tokens, group>::kSharedBytes,        \
   32 * PageConfig<bits, d, tokens, group>::kWarps,         \
   &simulate<PageConfig<bits, d, tokens, group>, false>},   \
      {#name "_d" #d "_bulk",                               \
       KvStorage::pages,                                    \
       bits,                                                \
       d,                                                   \
       tokens,                                              \
       group,                                               \
       PageConfig<bits, d, tokens, group>::kSharedBytes,    \
       32 * PageConfig<bits, d, tokens, group>::kWarps,     \
       &simulate<PageConfig<bits, d, tokens, group>, true>},
#define TAMIS_ATTENTION_ROWS(dtype, d)       \
  {#dtype "_d" #d,                           \
   KvStorage::dtype,                         \
   16,                                       \
   d,                                        \
   16,                                       \
   0,                                        \
   RowConfig<DType::dtype, d>::kSharedBytes, \
   32 * kRowWarps,                           \
   &simulate<RowConfig<DType::dtype, d>, false>},
#include "ops/sparse_attention/kernels_cuda.def"
#undef TAMIS_ATTENTION_PAGES
#undef TAMIS_ATTENTION_ROWS
  };
}

class Attention : public testing::TestWithParam<SimulatedRow> {
 protected:
  void expect_right(AttentionProblem p) {
    if (GetParam().storage == KvStorage::f16) p.q_dtype = DType::f16;
    if (GetParam().storage == KvStorage::bf16) p.q_dtype = DType::bf16;
    EXPECT_EQ(AttentionCase(GetParam(), p).run(p.seed), "") << label(p);
  }
  // Whether a plan may make the blocks of a head a cluster.
  static bool clusters() {
    const SimulatedRow& row = GetParam();
    return row.storage == KvStorage::pages && row.bits == 4 && row.name.ends_with("_bulk");
  }
};

TEST_P(Attention, Shapes) {
  uint64_t seed = 100;
  for (const int64_t rows : {1, 4, 8, 11}) {
    expect_right({.rows = rows, .seed = ++seed});
    expect_right({.batch = 2, .rows = rows, .q_dtype = DType::f16, .splits = 3, .seed = ++seed});
  }
  expect_right({.units = 1, .q_dtype = DType::f32, .seed = ++seed});
  expect_right({.units = 19, .splits = 2, .seed = ++seed});  // stages are used again
}

TEST_P(Attention, ListsSpansAndBiases) {
  uint64_t seed = 200;
  for (const int32_t splits : {1, 2}) {
    expect_right({.units = 9, .listed = true, .splits = splits, .seed = ++seed});
    expect_right({.units = 5, .spans = true, .splits = splits, .seed = ++seed});
    expect_right({.units = 5, .bias = true, .softcap = 3, .splits = splits, .seed = ++seed});
    expect_right({.batch = 2,
                  .units = 9,
                  .listed = true,
                  .spans = true,
                  .bias = true,
                  .splits = splits,
                  .seed = ++seed});
  }
}

TEST_P(Attention, Segments) {
  expect_right({.rows = 9, .segments = 3, .splits = 2, .seed = 301});
  expect_right({.listed = true, .segments = 2, .splits = 1, .seed = 302});
  if (GetParam().storage != KvStorage::pages) return;
  expect_right({.segments = 2, .mixed = true, .splits = 2, .seed = 303});
  expect_right({.spans = true, .segments = 3, .mixed = true, .splits = 1, .seed = 304});
}

// Dense tokens beside 4-bit pages, which the blocks of the pages read: a tile a warp at most, some
// warps none, no pages, a list or a bias that says otherwise.
TEST_P(Attention, TailBesidePages) {
  const SimulatedRow& row = GetParam();
  if (row.storage != KvStorage::pages || row.bits != 4) return;
  uint64_t seed = 600;
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const int32_t splits : {1, 2, 3}) {
      for (const int32_t units : {1, 3, 8}) {
        expect_right({.batch = 2,
                      .rows = units == 3 ? 11 : 4,
                      .units = units == 1 ? 30 : 9,
                      .q_dtype = dtype,
                      .spans = units == 8,
                      .softcap = units == 3 ? 3.0f : 0.0f,
                      .amplitude = units == 1 ? 3.0f : 1.0f,
                      .segments = 2,
                      .mixed = true,
                      .tail_units = units,
                      .splits = splits,
                      .cluster = splits == 2 && clusters(),
                      .seed = ++seed});
      }
    }
    expect_right({.units = 5,
                  .q_dtype = dtype,
                  .bias = true,
                  .segments = 2,
                  .mixed = true,
                  .tail_units = 2,
                  .splits = 2,
                  .seed = ++seed});
  }
  // Few pages: the tail is the longer one, and a launch of its own.
  expect_right(
      {.units = 2, .segments = 2, .mixed = true, .tail_units = 8, .splits = 2, .seed = ++seed});
  AttentionProblem p{
      .kv_heads = 1, .units = 9, .segments = 2, .mixed = true, .tail_units = 5, .seed = 650};
  AttentionCase c(row, p);
  EXPECT_EQ(c.run(1), "");
  int copies = 0;
  for (int copy = 0; copy < 400; copy += 40) copies += c.run(1, {.copy = copy}).empty() ? 0 : 1;
  EXPECT_GT(copies, 0);
}

TEST_P(Attention, LargeAndSmallNumbers) {
  expect_right({.units = 4, .q_dtype = DType::f32, .amplitude = 4, .seed = 401});
  expect_right({.units = 4, .q_dtype = DType::f32, .amplitude = 0.01f, .seed = 402});
}

TEST_P(Attention, TwoRunsAgreeInEveryBit) {
  AttentionProblem p{.rows = 5, .units = 11, .splits = 3, .seed = 51};
  if (GetParam().storage == KvStorage::f16) p.q_dtype = DType::f16;
  AttentionCase c(GetParam(), p);
  ASSERT_EQ(c.run(1), "");
  const auto first = c.out();
  ASSERT_EQ(c.run(2), "");
  EXPECT_EQ(0, std::memcmp(first.data(), c.out().data(), first.size() * sizeof(float) / 2));
}

TEST_P(Attention, PaddingThatAListNamesChangesNoBit) {
  if (GetParam().storage == KvStorage::pages) return;
  AttentionProblem p{.units = 9, .listed = true, .segments = 2, .splits = 2, .seed = 71};
  if (GetParam().storage == KvStorage::f16) p.q_dtype = DType::f16;
  for (const int32_t hidden : {1, 15, 37}) {
    AttentionCase named(GetParam(), p), cut(GetParam(), p);
    named.hide(hidden, true);
    cut.hide(hidden, false);
    ASSERT_EQ(named.run(1), "");
    ASSERT_EQ(cut.run(2), "");
    const auto want = cut.out();
    EXPECT_EQ(0, std::memcmp(want.data(), named.out().data(), want.size() * sizeof(float) / 2));
  }
}

// Two blocks that meet through shared memory; more parts than a warp has lanes.
TEST_P(Attention, ClustersAndManyParts) {
  uint64_t seed = 500;
  for (const int64_t rows : {1, 4, 7, 12}) {
    if (rows == 4 || rows == 12) {  // the second 32 parts have tiles, too
      const int64_t units = 40 * GetParam().threads / 32;
      expect_right({.kv_heads = 1,
                    .rows = rows,
                    .units = units,
                    .amplitude = 3,
                    .splits = 40,
                    .seed = ++seed});
    }
    if (!clusters()) continue;
    expect_right(
        {.batch = 2, .rows = rows, .units = 19, .splits = 2, .cluster = true, .seed = ++seed});
    expect_right({.rows = rows, .units = 0, .splits = 2, .cluster = true, .seed = ++seed});
  }
  if (!clusters()) return;
  AttentionProblem p{.kv_heads = 1, .units = 20, .splits = 2, .cluster = true, .seed = 62};
  AttentionCase c(GetParam(), p);
  EXPECT_EQ(c.run(1), "");
  int meetings = 0;  // the first block has made its barrier before a part is sent
  for (uint64_t s = 1; s <= 8; ++s) meetings += c.run(s, {.cluster = 0}).empty() ? 0 : 1;
  EXPECT_GT(meetings, 0);
}

TEST_P(Attention, FaultsAreNoticed) {
  AttentionProblem p{.kv_heads = 1, .units = 40, .seed = 61};  // five for each of eight warps
  if (GetParam().storage == KvStorage::f16) p.q_dtype = DType::f16;
  AttentionCase c(GetParam(), p);
  for (const int wait : {0, 1, 3}) EXPECT_NE(c.run(1, {.wait = wait}), "") << "wait " << wait;
  // One of the 16 bytes of codes may be too few to be noticed, those of scales are not.
  int copies = 0, barriers = 0;
  for (int copy = 0; copy < 320; copy += 32) copies += c.run(1, {.copy = copy}).empty() ? 0 : 1;
  EXPECT_GT(copies, 0);
  for (uint64_t seed = 1; seed <= 8; ++seed)
    barriers += c.run(seed, {.barrier = 0}).empty() ? 0 : 1;
  EXPECT_GT(barriers, 0) << "before warps are added up";
  p.units = 4;
  p.splits = 2;
  AttentionCase shared(GetParam(), p);
  EXPECT_EQ(shared.run(1), "");
  EXPECT_NE(shared.run(1, {.fence = 0}), "") << "between the parts and the ticket";
  EXPECT_NE(shared.run(1, {.barrier = 1}), "") << "before the ticket";
  EXPECT_NE(shared.run(1, {.barrier = 2}), "") << "before it is known who was last";
  if (GetParam().threads < 256) return;
  EXPECT_NE(shared.run(1, {.barrier = 3}), "") << "between the halves of the parts";
}

INSTANTIATE_TEST_SUITE_P(Rows, Attention, testing::ValuesIn(rows()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tamis::test
