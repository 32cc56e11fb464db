// kv_summarize on every ISA level of this host against the reference: bounds and means, dtypes,
// head sizes, pages, strides.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "fewer.h"
#include "guarded.h"
#include "ops/kv_select/kv_select.h"
#include "select_problem.h"

namespace tamis::test {
namespace {

TEST(KvSummarize, AgainstTheReference) {
  std::mt19937 random(13);
  std::normal_distribution<float> normal;
  for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
    for (const KvSummary kind : {KvSummary::bounds, KvSummary::rows}) {
      for (const int64_t d : {16, 48, 64, 80, 128, 256}) {
        for (const int64_t page : {1, 8, 16, 23}) {
          const int64_t heads = 6, pages = 5, stride = d + 16, tokens = pages * page;
          const int64_t width = kv_summary_width(kind, d);
          const auto size = static_cast<size_t>(size_of(type));
          const auto count = static_cast<size_t>(heads * pages * width);
          // the last row of the last head ends at a guard page
          Guarded<uint8_t> keys(static_cast<size_t>(heads * tokens * stride - 16) * size);
          for (size_t i = 0; i < keys.size() / size; ++i) put(keys.data(), type, i, normal(random));
          Guarded<uint8_t> out(count * size);
          std::vector<float> alike(static_cast<size_t>(heads * pages));
          const KvSummarizeArgs args{.kind = kind,
                                     .dtype = type,
                                     .batch = 3,
                                     .kv_heads = 2,
                                     .head_dim = d,
                                     .pages = pages,
                                     .page = page,
                                     .keys = keys.data(),
                                     .key_batch_stride = 2 * tokens * stride,
                                     .key_head_stride = tokens * stride,
                                     .key_token_stride = stride,
                                     .out = out.data(),
                                     .alike = alike.data()};
          std::vector<double> wanted(count), wanted_alike(alike.size());
          ASSERT_TRUE(kv_summarize_reference(args, wanted.data(), wanted_alike.data()).ok());
          const double unit = type == DType::f32 ? 0x1p-22 : type == DType::f16 ? 0x1p-11 : 0x1p-8;
          for (const int threads : {1, 3}) {
            set_num_threads(threads);
            for (const IsaBits isa : kLevels) {
              if ((isa & host_isa()) != isa) continue;
              std::fill(out.data(), out.data() + out.size(), uint8_t{0xff});
              ASSERT_TRUE(kv_summarize_on(isa, args).ok());
              for (size_t i = 0; i < count; ++i) {
                const double got = type == DType::f32
                                       ? reinterpret_cast<const float*>(out.data())[i]
                                   : type == DType::f16
                                       ? f32_from_f16(reinterpret_cast<uint16_t*>(out.data())[i])
                                       : f32_from_bf16(reinterpret_cast<uint16_t*>(out.data())[i]);
                const double exact = kind == KvSummary::bounds ? 0 : 2 * unit;
                ASSERT_NEAR(got, wanted[i], exact * (1 + std::fabs(wanted[i])))
                    << name_of(type) << " d " << d << " page " << page << " " << isa_name(isa);
              }
              for (size_t i = 0; kind == KvSummary::rows && i < alike.size(); ++i) {
                ASSERT_NEAR(alike[i], wanted_alike[i], 1e-5) << d << " " << page;
              }
            }
          }
          set_num_threads(0);
        }
      }
    }
  }
}

TEST(KvSummarize, RefusesWhatItCannotDo) {
  KvSummarizeArgs args{.batch = 1, .kv_heads = 1, .head_dim = 64, .pages = 1};
  EXPECT_STREQ(kv_summarize(args).text, "kv_select: keys, out, alike: got null");
  args.head_dim = 65;
  EXPECT_STREQ(kv_summarize(args).text,
               "kv_select: head_dim: got 65, wanted a multiple of 16 from 16 to 256");
  args.page = 0;
  EXPECT_STREQ(kv_summarize(args).text, "kv_select: page: got 0, wanted 1 or more");
}

}  // namespace
}  // namespace tamis::test
