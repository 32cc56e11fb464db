// kv_edit on the simulator: every row of kernels_cuda.def against the double reference, rows that
// are moved against a plain copy, guard pages round every array; then bugs put in on purpose.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "cuda_sim/devices.h"
#include "edit_problem.h"
#include "format/matrix.h"
#include "ops/kv_edit/gather.cuh"
#include "ops/kv_edit/merge_means.cuh"

namespace tamis::test {
namespace {

sim::Launch grid(int64_t blocks, int64_t heads, int32_t threads, int32_t shared_bytes,
                 uint64_t seed) {
  return {.grid = {static_cast<uint32_t>(blocks), static_cast<uint32_t>(heads)},
          .block = {static_cast<uint32_t>(threads)},
          .shared_bytes = static_cast<size_t>(shared_bytes),
          .seed = seed};
}

// Bugs of the second pass and of the third.
struct Bugs {
  sim::Faults nearest = {}, join = {};
};

template <class Config>
std::string merge(const KvMergeArgs& args, uint64_t seed, const Bugs& bugs = {}) {
  if (const Status status = check_merge_cuda(args, kH100); !status.ok()) return status.text;
  std::vector<float> workspace(static_cast<size_t>(merge_workspace(args) / 4), std::nanf(""));
  const MergeParams p = merge_params(args, workspace.data());
  std::string wrong = sim::launch(grid(ceil_div(p.kept.stride + p.dropped.stride, kMergeWarps),
                                       args.heads, kMergeThreads, 0, seed),
                                  [&] { merge_scales(p); });
  if (!wrong.empty()) return wrong;
  sim::Launch nearest = grid(ceil_div(p.dropped.stride, Config::kKept), args.heads, kTileThreads,
                             merge_shared(p.kinds, p.row_bytes), seed);
  nearest.faults = bugs.nearest;
  wrong = sim::launch(nearest, [&] { merge_nearest<Config>(p); });
  if (!wrong.empty()) return wrong;
  sim::Launch join = grid(ceil_div(p.kept.stride, kMergeWarps) * (p.out_keys ? 2 : 1), args.heads,
                          kMergeThreads, kMergeJoinShared, seed);
  join.faults = bugs.join;
  return sim::launch(join, [&] { merge_join<Config::kType>(p); });
}

template <class Config>
std::string attempt(const EditCase& c, uint64_t seed, const Bugs& bugs = {}) {
  EditProblem problem(c, static_cast<uint32_t>(seed));
  const std::string wrong = merge<Config>(problem.args, seed, bugs);
  return wrong.empty() ? problem.wrong(c.dtype == DType::f32 ? 0x1p-14 : 1e-5) : wrong;
}

template <class Config>
void expect_all() {
  uint64_t seed = std::random_device{}() % 100000;
  for (const KvSimilarity s : {KvSimilarity::keys, KvSimilarity::keys_values}) {
    for (EditCase c : {
             EditCase{.head_dim = 64},
             EditCase{.heads = 1, .tokens = 700, .head_dim = 16, .weights = false},
             EditCase{.heads = 2, .tokens = 230, .head_dim = 128, .merge_keys = false, .gap = 8},
             EditCase{.heads = 2, .tokens = 150, .head_dim = 80, .tau = 0.2f, .gap = 16},
             EditCase{.tokens = 200, .head_dim = 48, .kinds = 3},
             EditCase{.heads = 1, .tokens = 90, .head_dim = 256, .weights = false},
             EditCase{.heads = 4, .tokens = 5, .tau = -2},
             EditCase{.heads = 2, .tokens = 1},
             EditCase{.tokens = 60, .tau = 1},
         }) {
      c.dtype = Config::kType;
      c.similarity = s;
      if (c.dtype == DType::f32 && c.head_dim > 128) continue;
      EXPECT_EQ(attempt<Config>(c, ++seed), "") << label(c) << ", seed " << seed;
    }
  }
}

#define TAMIS_KV_MERGE_CUDA(dtype)           \
  TEST(KvMerge, dtype) {                     \
    expect_all<MergeConfig<DType::dtype>>(); \
  }
#include "ops/kv_edit/kernels_cuda.def"
#undef TAMIS_KV_MERGE_CUDA

// Thousands of tokens that all join one: more entries than a block looks through at a time.
TEST(KvMerge, TakesManyThatJoinOne) {
  const EditCase c{.dtype = DType::bf16, .heads = 1, .tokens = 5000, .head_dim = 16, .kinds = 1};
  EXPECT_EQ(attempt<MergeConfig<DType::bf16>>(c, 3), "");
}

TEST(KvMerge, TwoRunsAgreeInEveryBit) {
  EditProblem problem({.dtype = DType::f16, .tokens = 400, .head_dim = 64, .kinds = 20}, 4);
  ASSERT_EQ(merge<MergeConfig<DType::f16>>(problem.args, 1), "");
  const std::vector<uint8_t> first = problem.answer();
  problem.forget();
  ASSERT_EQ(merge<MergeConfig<DType::f16>>(problem.args, 2), "");
  EXPECT_EQ(problem.answer(), first);
}

TEST(KvMerge, TakesTheNearestTokenOfAListThatNamesNone) {
  EditProblem problem({.dtype = DType::bf16, .heads = 1, .tokens = 40, .head_dim = 32}, 5);
  const std::vector<int32_t> kept = {-5, 1 << 30}, dropped = {7, 99};
  problem.args.kept = {kept.data(), 2, nullptr};
  problem.args.dropped = {dropped.data(), 2, nullptr};
  EXPECT_EQ(merge<MergeConfig<DType::bf16>>(problem.args, 1), "");
}

TEST(KvMerge, NoticesMissingBarriersAndWaits) {
  using Config = MergeConfig<DType::bf16>;
  const EditCase c{.dtype = DType::bf16, .heads = 1, .tokens = 600, .head_dim = 64};
  ASSERT_EQ(attempt<Config>(c, 1), "");
  const auto noticed = [&](const Bugs& bugs) {
    int count = 0;
    for (uint64_t seed = 1; seed <= 6; ++seed) count += !attempt<Config>(c, seed, bugs).empty();
    return count;
  };
  for (int i = 0; i < 4; ++i) {
    EXPECT_GT(noticed({.nearest = {.wait = i}}), 0) << "wait " << i;
    EXPECT_GT(noticed({.nearest = {.copy = 100 * i}}), 0) << "copy " << 100 * i;
    EXPECT_GT(noticed({.nearest = {.barrier = i}}), 0) << "barrier " << i;
  }
  for (int i = 0; i < 2; ++i) {
    EXPECT_GT(noticed({.join = {.barrier = i}}), 0) << "barrier " << i << " of means";
  }
}

TEST(KvMerge, RefusesWhatHasNoKernel) {
  EditProblem problem({.tokens = 8, .head_dim = 64}, 1);
  EXPECT_TRUE(check_merge_cuda(problem.args, kH100).ok());
  const auto code = [&](auto change) {
    KvMergeArgs a = problem.args;
    change(a);
    return check_merge_cuda(a, kH100).code;
  };
  EXPECT_EQ(code([](KvMergeArgs& a) { a.head_dim = 144; }), Code::no_kernel);
  EXPECT_EQ(code([](KvMergeArgs& a) { a.head_dim = 24; }), Code::invalid_argument);
  EXPECT_EQ(code([](KvMergeArgs& a) { a.key_token_stride = 66; }), Code::invalid_argument);
  EXPECT_EQ(code([](KvMergeArgs& a) { a.heads = 70000; }), Code::invalid_argument);
  EXPECT_EQ(code([](KvMergeArgs& a) { a.kept.index = nullptr; }), Code::invalid_argument);
  EXPECT_EQ(check_merge_cuda(problem.args, {.shared_per_block = 40000}).code, Code::no_kernel);
}

// ---- rows that are moved

template <class Piece>
std::string move_pieces(const KvGatherArgs& a, uint64_t seed, const sim::Faults& faults) {
  const GatherParams p = gather_params(a);
  const bool in_place = gathers_in_place(a);
  const int64_t rows = in_place ? 1 : ceil_div(a.index.stride, gather_rows_at_once(p.slice));
  sim::Launch launch = grid(rows * ceil_div(p.pieces, p.slice), a.heads, kGatherThreads, 0, seed);
  launch.faults = faults;
  return sim::launch(
      launch, [&] { in_place ? gather_pieces<Piece, true>(p) : gather_pieces<Piece, false>(p); });
}

std::string move(const KvGatherArgs& a, uint64_t seed, const sim::Faults& faults = {}) {
  if (const Status status = check_gather_cuda(a); !status.ok()) return status.text;
  switch (gather_piece(a)) {
    case 16:
      return move_pieces<dev::Word4>(a, seed, faults);
    case 8:
      return move_pieces<dev::Word2>(a, seed, faults);
    case 4:
      return move_pieces<uint32_t>(a, seed, faults);
    case 2:
      return move_pieces<uint16_t>(a, seed, faults);
    default:
      return move_pieces<uint8_t>(a, seed, faults);
  }
}

// What is wrong with rows that were moved to an array of their own and in place.
std::string moved(int64_t tokens, int64_t row, uint64_t seed, const sim::Faults& faults = {}) {
  const int64_t heads = 2, step = row + (row % 3 == 0 ? row : 0);
  std::mt19937 random(static_cast<uint32_t>(seed));
  const EditLists lists(heads, tokens, &random);
  Guarded<uint8_t> x(static_cast<size_t>(heads * tokens * step));
  Guarded<uint8_t> out(static_cast<size_t>(heads * tokens * row));
  for (uint8_t& b : x.span()) b = static_cast<uint8_t>(random());
  const std::vector<uint8_t> before(x.data(), x.data() + x.size());
  KvGatherArgs args{.heads = heads,
                    .tokens = tokens,
                    .row_bytes = row,
                    .x = x.data(),
                    .head_stride_bytes = tokens * step,
                    .token_stride_bytes = step,
                    .index = {lists.kept.data(), tokens, lists.kept_count.data()},
                    .out = out.data(),
                    .out_head_stride_bytes = tokens * row,
                    .out_token_stride_bytes = row};
  std::string wrong = move(args, seed);
  if (!wrong.empty()) return wrong;
  args.out = x.data();
  args.out_head_stride_bytes = tokens * step;
  args.out_token_stride_bytes = step;
  wrong = move(args, seed, faults);
  if (!wrong.empty()) return wrong;
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t i = 0; i < lists.kept_count[static_cast<size_t>(h)] * row; ++i) {
      const int64_t token = lists.kept[static_cast<size_t>(h * tokens + i / row)];
      const uint8_t wanted = before[static_cast<size_t>((h * tokens + token) * step + i % row)];
      const std::string where = " of head " + std::to_string(h) + ", byte " + std::to_string(i);
      if (out[static_cast<size_t>(h * tokens * row + i)] != wanted) return "a copy" + where;
      if (x[static_cast<size_t>((h * tokens + i / row) * step + i % row)] != wanted) {
        return "in place" + where;
      }
    }
  }
  return {};
}

TEST(KvGather, MovesRows) {
  uint64_t seed = std::random_device{}() % 100000;
  for (const int64_t row : {1, 2, 4, 12, 24, 32, 256, 272}) {
    for (const int64_t tokens : {1, 61, 1500}) {
      EXPECT_EQ(moved(tokens, row, ++seed), "")
          << row << " bytes, " << tokens << " tokens, seed " << seed;
    }
  }
}

TEST(KvGather, NoticesRowsWrittenBeforeTheyAreRead) {
  int noticed = 0;
  for (uint64_t seed = 1; seed <= 6; ++seed)
    noticed += !moved(900, 64, seed, {.barrier = 0}).empty();
  EXPECT_GT(noticed, 0);
}

}  // namespace
}  // namespace tamis::test
