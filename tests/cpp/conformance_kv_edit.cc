// kv_gather against a plain copy, and kv_merge on every ISA level of this host against the
// reference in double: dtypes, head sizes, ragged counts, both similarities; with guard pages after
// each array.
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "base/parallel.h"
#include "edit_problem.h"
#include "fewer.h"
#include "guarded.h"
#include "ops/kv_edit/kv_edit.h"

namespace tamis::test {
namespace {

constexpr IsaBits kLevels[] = {isa::kScalar, isa::avx2, isa::avx512, isa::avx512bf16, isa::neon};

TEST(KvEdit, GathersAndClosesUpInPlace) {
  std::mt19937 random(3);
  const int64_t heads = 5, tokens = 61;
  for (const int64_t row : {1, 4, 24, 256}) {
    const EditLists lists(heads, tokens, &random);
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

void expect_reference(const EditCase& c, int threads = 1) {
  static uint64_t number = 0;
  if (!keeps_case(number++)) return;
  EditProblem problem(c, 5);
  set_num_threads(threads);
  for (const IsaBits isa : kLevels) {
    if ((isa & host_isa()) != isa) continue;
    problem.forget();
    const Status status = kv_merge_on(isa, problem.args);
    ASSERT_TRUE(status.ok()) << status.text;
    ASSERT_EQ(problem.wrong(), "") << isa_name(isa) << ", " << label(c);
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
