// The kernel that each ISA level gets, asked for on any host: choose_spmm is a pure function.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "base/machine.h"
#include "ops/spmm/cost.h"
#include "ops/spmm/pages.h"
#include "ops/spmm/spmm.h"

namespace tamis::test {
namespace {

struct Want {
  Format format;
  DType w, x;
  const char* isa;
  const char* kernel;
};

constexpr Want kWanted[] = {
#if defined(__x86_64__)
    {Format::bitmap, DType::bf16, DType::bf16, "avx512bf16", "spmm_bitmap_bf16_bf16_avx512bf16"},
    {Format::bitmap, DType::bf16, DType::bf16, "avx512vbmi2", "spmm_bitmap_bf16_bf16_avx512vbmi2"},
    {Format::bitmap, DType::bf16, DType::bf16, "avx512", "spmm_bitmap_bf16_bf16_avx512"},
    {Format::bitmap, DType::bf16, DType::bf16, "avx2", "spmm_bitmap_bf16_bf16_avx2"},
    {Format::bitmap, DType::bf16, DType::bf16, "scalar", "spmm_bitmap_bf16_bf16_scalar"},
    {Format::bitmap, DType::f32, DType::f32, "avx512bf16", "spmm_bitmap_f32_f32_avx512"},
    {Format::bitmap, DType::f32, DType::f32, "avx512", "spmm_bitmap_f32_f32_avx512"},
    {Format::bitmap, DType::f32, DType::f32, "avx2", "spmm_bitmap_f32_f32_avx2"},
    {Format::bitmap, DType::f32, DType::f32, "scalar", "spmm_bitmap_f32_f32_scalar"},
    {Format::bitmap, DType::bf16, DType::f32, "avx512bf16", "spmm_bitmap_bf16_f32_avx512"},
    {Format::bitmap, DType::bf16, DType::f32, "avx2", "spmm_bitmap_bf16_f32_avx2"},
    {Format::bitmap, DType::f16, DType::f16, "avx512bf16", "spmm_bitmap_f16_f16_avx512"},
    {Format::bitmap, DType::f16, DType::f16, "avx2", "spmm_bitmap_f16_f16_avx2"},
    {Format::bitmap, DType::i8, DType::bf16, "avx512bf16", "spmm_bitmap_i8_bf16_avx512vbmi2_codes"},
    {Format::bitmap, DType::f32, DType::bf16, "avx512bf16", "spmm_bitmap_f32_bf16_scalar"},
    {Format::nm, DType::bf16, DType::bf16, "avx512bf16", "spmm_nm_bf16_bf16_avx512bf16"},
    {Format::nm, DType::f32, DType::f32, "avx512", "spmm_nm_f32_f32_avx512"},
    {Format::nm, DType::f32, DType::f32, "avx2", "spmm_nm_f32_f32_avx2"},
    {Format::csr, DType::f32, DType::f32, "avx512bf16", "spmm_csr_f32_f32_avx512"},
    {Format::csr, DType::f32, DType::f32, "avx2", "spmm_csr_f32_f32_avx2"},
    {Format::csr8, DType::f32, DType::f32, "avx512bf16", "spmm_csr8_f32_f32_avx512"},
    {Format::csr8, DType::bf16, DType::bf16, "avx512bf16", "spmm_csr8_bf16_bf16_avx512bf16"},
    {Format::csr8, DType::bf16, DType::bf16, "avx512", "spmm_csr8_bf16_bf16_avx512"},
    {Format::csr8, DType::bf16, DType::bf16, "avx2", "spmm_csr8_bf16_bf16_avx2_singles"},
    {Format::csr, DType::f16, DType::f16, "avx2", "spmm_csr_f16_f16_scalar"},
    {Format::groupq, DType::u8, DType::f32, "avx2", "spmm_groupq_u8_f32_avx2_groups"},
    {Format::block, DType::f32, DType::f32, "avx2", "spmm_block_f32_f32_avx2"},
    {Format::block, DType::bf16, DType::bf16, "avx2", "spmm_block_bf16_bf16_avx2"},
#elif defined(__aarch64__)
    {Format::bitmap, DType::bf16, DType::bf16, "neon_bf16", "spmm_bitmap_bf16_bf16_neon_bf16"},
    {Format::bitmap, DType::bf16, DType::bf16, "neon_fhm", "spmm_bitmap_bf16_bf16_neon"},
    {Format::bitmap, DType::f16, DType::f16, "neon_bf16", "spmm_bitmap_f16_f16_neon_fhm"},
    {Format::nm, DType::f16, DType::f16, "neon_dot", "spmm_nm_f16_f16_neon"},
    {Format::bitmap, DType::f32, DType::f32, "neon_bf16", "spmm_bitmap_f32_f32_neon"},
    {Format::nm, DType::i8, DType::f32, "neon_bf16", "spmm_nm_i8_f32_neon_dot_codes"},
    {Format::nm, DType::i8, DType::f32, "neon", "spmm_nm_i8_f32_neon_codes"},
    {Format::block, DType::f32, DType::f32, "neon", "spmm_block_f32_f32_neon"},
    {Format::groupq, DType::u4, DType::bf16, "neon_bf16", "spmm_groupq_u4_bf16_neon_dot_lanes"},
    {Format::groupq, DType::u4, DType::bf16, "neon", "spmm_groupq_u4_bf16_neon_groups"},
#endif
    {Format::bitmap, DType::f32, DType::bf16, "scalar", "spmm_bitmap_f32_bf16_scalar"},
};

SpmmDesc desc_of(Format format, DType w, DType x) {
  return {.format = format,
          .w_dtype = w,
          .x_dtype = x,
          .m = 1,
          .n = 576,
          .k = 576,
          .nnz = 576 * 576 / 2};
}

TEST(ChooseSpmm, PicksTheExpectedKernel) {
  for (const Want& want : kWanted) {
    IsaBits bits = 0;
    ASSERT_TRUE(isa_from_name(want.isa, &bits)) << want.isa;
    const SpmmRow* row = choose_spmm(desc_of(want.format, want.w, want.x), bits);
    ASSERT_NE(row, nullptr) << want.kernel;
    EXPECT_STREQ(row->name, want.kernel) << "on " << want.isa;
  }
}

TEST(ChooseSpmm, EveryFormatAndDtypeHasAKernelEverywhere) {
  for (const Format format :
       {Format::bitmap, Format::csr, Format::nm, Format::block, Format::csr8}) {
    for (const DType w : {DType::f32, DType::f16, DType::bf16, DType::i8}) {
      for (const DType x : {DType::f32, DType::f16, DType::bf16}) {
        const SpmmRow* row = choose_spmm(desc_of(format, w, x), isa::kScalar);
        ASSERT_NE(row, nullptr) << name_of(format) << " " << name_of(w) << " " << name_of(x);
        EXPECT_EQ(row->isa, isa::kScalar);
      }
    }
  }
}

TEST(ChooseSpmm, GroupsOfCodesHaveAKernelEverywhere) {
  for (const DType w : {DType::u4, DType::u8}) {
    for (const DType x : {DType::f32, DType::f16, DType::bf16}) {
      const SpmmRow* row = choose_spmm(desc_of(Format::groupq, w, x), isa::kScalar);
      ASSERT_NE(row, nullptr) << name_of(w) << " " << name_of(x);
      EXPECT_EQ(row->isa, isa::kScalar);
    }
  }
}

TEST(ChooseSpmm, NeverPicksWhatTheHostLacks) {
  for (IsaBits bits = 0; bits < 1u << 12; ++bits) {
    if (bits & 0xe0) continue;  // no level has these
    for (const SpmmRow& row : spmm_kernels()) {
      const SpmmRow* got = choose_spmm(desc_of(row.format, row.w_dtype, row.x_dtype), bits);
      ASSERT_NE(got, nullptr);
      EXPECT_EQ(got->isa & ~bits, 0u) << got->name << " on bits " << bits;
    }
  }
}

#if defined(__x86_64__)
TEST(ChooseSpmm, Int8TakesQuadsForSeveralTokensAndDozensForMany) {
  SpmmDesc desc = desc_of(Format::nm, DType::i8, DType::f16);
  desc.n = desc.k = 4096;
  desc.nnz = desc.n * desc.k / 2;
  struct Chosen {
    int64_t tokens;
    const char *zen4, *intel;
  };
  for (const Chosen& c : {Chosen{3, "codes", "codes"},
                          {4, "turns", "codes"},
                          {6, "octets", "codes"},
                          {8, "octets", "quads"},
                          {16, "quads", "quads"},
                          {17, "dozens", "quads"},
                          {64, "dozens", "quads"},
                          {512, "dozens", "quads"}}) {
    desc.m = c.tokens;
    const std::string kernel = "spmm_nm_i8_f16_avx512vbmi2_";
    EXPECT_EQ(choose_spmm(desc, isa::avx512bf16)->name, kernel + c.zen4) << c.tokens << " tokens";
    EXPECT_EQ(choose_spmm(desc, isa::avx512vbmi2)->name, kernel + c.intel) << c.tokens << " tokens";
  }
  EXPECT_STREQ(choose_spmm(desc, isa::avx512)->name, "spmm_nm_i8_f16_avx2_codes");
}

TEST(ChooseSpmm, GroupsOfCodesTakeLanesForSeveralTokens) {
  SpmmDesc desc = desc_of(Format::groupq, DType::u4, DType::bf16);
  desc.n = desc.k = 4096;
  desc.nnz = desc.n * desc.k / 2;
  EXPECT_STREQ(choose_spmm(desc, isa::avx512bf16)->name, "spmm_groupq_u4_bf16_avx512vbmi2_halves");
  EXPECT_STREQ(choose_spmm(desc, isa::avx512vbmi2)->name, "spmm_groupq_u4_bf16_avx512vbmi2_halves");
  // Up to six tokens are one pass.
  desc.m = 5;
  EXPECT_STREQ(choose_spmm(desc, isa::avx512fp16)->name, "spmm_groupq_u4_bf16_avx512vbmi2_halves");
  // What leaves out groups gains where few are stored.
  desc.m = 1;
  desc.nnz /= 5;
  EXPECT_STREQ(choose_spmm(desc, isa::avx512fp16)->name, "spmm_groupq_u4_bf16_avx512vbmi2_eights");
  desc.nnz *= 5;
  desc.m = 8;
  EXPECT_STREQ(choose_spmm(desc, isa::avx512bf16)->name, "spmm_groupq_u4_bf16_avx512bf16_lanes");
  EXPECT_STREQ(choose_spmm(desc, isa::avx512fp16)->name, "spmm_groupq_u4_bf16_avx512vbmi2_lanes");
  EXPECT_STREQ(choose_spmm(desc, isa::avx512)->name, "spmm_groupq_u4_bf16_avx512_groups");
}

// Pairs of bf16 cost the same whatever is stored, products of codes what is; and Intel's pairs cost
// two cycles.
TEST(ChooseSpmm, AllGroupsOfCodesTakePanelsForManyTokens) {
  SpmmDesc desc = desc_of(Format::groupq, DType::u4, DType::bf16);
  desc.m = 512;
  desc.n = desc.k = 4096;
  desc.nnz = desc.n * desc.k;
  const char* lanes = "spmm_groupq_u4_bf16_avx512vbmi2_lanes";
  EXPECT_STREQ(choose_spmm(desc, isa::avx512bf16)->name, "spmm_groupq_u4_bf16_avx512bf16_panels");
  EXPECT_STREQ(choose_spmm(desc, isa::avx512vbmi2)->name, lanes);
  EXPECT_STREQ(choose_spmm(desc, isa::avx512fp16)->name, lanes);
  EXPECT_STREQ(choose_spmm(desc, isa::amx)->name, "spmm_groupq_u4_bf16_amx_tiles");
  desc.nnz /= 2;
  EXPECT_STREQ(choose_spmm(desc, isa::avx512bf16)->name, "spmm_groupq_u4_bf16_avx512bf16_lanes");
  EXPECT_STREQ(choose_spmm(desc, isa::avx512fp16)->name, lanes);
}
#endif

#if defined(__x86_64__)
// An x86 host with FP16, or with VBMI2 and no BF16, is Intel's, whatever a hypervisor hides.
TEST(ChooseSpmm, HostsLikeEmeraldRapidsHaveItsConstants) {
  SpmmDesc desc = desc_of(Format::bitmap, DType::f32, DType::f32);
  desc.n = desc.k = 4096;
  desc.nnz = desc.n * desc.k / 2;
  const SpmmRow& row = *choose_spmm(desc, isa::avx512);
  EXPECT_EQ(spmm_cost(row, isa::avx512vbmi2), spmm_cost(row, isa::amx));
  EXPECT_EQ(spmm_cost(row, isa::avx512vbmi2), spmm_cost(row, isa::avx512fp16));
  EXPECT_NE(spmm_cost(row, isa::avx512vbmi2), spmm_cost(row, isa::avx512bf16));
  EXPECT_EQ(reference_machine(isa::avx512fp16).isa, isa::avx512fp16);
  EXPECT_EQ(reference_machine(isa::avx512bf16).isa, isa::avx512bf16);
  EXPECT_EQ(reference_machine(isa::avx512vbmi2).isa, isa::avx512vbmi2);
  EXPECT_EQ(spmm_cost(row, isa::avx512), spmm_cost(row, isa::avx512bf16));
  // Pairs of bf16 cost two cycles there, so 8 tokens take f32 products of strips, and pairs on
  // Zen 4.
  desc.w_dtype = desc.x_dtype = DType::bf16;
  desc.m = 8;
  EXPECT_STREQ(choose_spmm(desc, isa::avx512vbmi2)->name,
               "spmm_bitmap_bf16_bf16_avx512vbmi2_strips");
  EXPECT_STREQ(choose_spmm(desc, isa::avx512bf16)->name, "spmm_bitmap_bf16_bf16_avx512bf16_octets");
  desc.m = 6;
  EXPECT_STREQ(choose_spmm(desc, isa::avx512bf16)->name, "spmm_bitmap_bf16_bf16_avx512bf16_strips");
  // A pass of columns costs the same for any number of tokens up to 16.
  desc.m = 16;
  EXPECT_STREQ(choose_spmm(desc, isa::avx512bf16)->name,
               "spmm_bitmap_bf16_bf16_avx512bf16_columns");
}

// Rows in lanes where most weights are stored, from 17 tokens on, for which columns take two
// passes, but not where those of others are full (24 by octets, 32 by columns); zeros are left out
// where that is clearly less. Not timed on Emerald Rapids.
TEST(ChooseSpmm, ManyTokensOfStoredWeightsTakeDozens) {
  struct Chosen {
    int64_t tokens;
    double kept;
    const char *f32, *bf16;
  };
  const std::string f32 = "spmm_bitmap_f32_f32_", bf16 = "spmm_bitmap_bf16_bf16_";
  for (const Chosen& c : {Chosen{16, 1.0, "avx512bf16_columns", "avx512bf16_columns"},
                          {17, 1.0, "avx512", "avx512bf16_dozens"},
                          {24, 1.0, "avx512bf16_octets", "avx512bf16_octets"},
                          {32, 1.0, "avx512bf16_columns", "avx512bf16_columns"},
                          {64, 1.0, "avx512bf16_dozens", "avx512bf16_dozens"},
                          {196, 1.0, "avx512bf16_dozens", "avx512bf16_dozens"},
                          {512, 1.0, "avx512bf16_dozens", "avx512bf16_dozens"},
                          {17, 0.5, "avx512bf16_dozens", "avx512bf16_dozens"},
                          {256, 0.5, "avx512vbmi2_skip", "avx512bf16_skip"},
                          {256, 0.7, "avx512vbmi2_skip", "avx512bf16_dozens"},
                          {256, 0.3, "avx512vbmi2_skip", "avx512bf16_skip"}}) {
    SpmmDesc desc = desc_of(Format::bitmap, DType::f32, DType::f32);
    desc.n = desc.k = 512;
    desc.nnz = static_cast<int64_t>(c.kept * 512 * 512);
    desc.m = c.tokens;
    EXPECT_EQ(choose_spmm(desc, isa::avx512bf16)->name, f32 + c.f32) << c.tokens << " " << c.kept;
    EXPECT_EQ(std::string(choose_spmm(desc, isa::avx512fp16)->name).find("dozens"),
              std::string::npos);
    desc.w_dtype = desc.x_dtype = DType::bf16;
    EXPECT_EQ(choose_spmm(desc, isa::avx512bf16)->name, bf16 + c.bf16) << c.tokens << " " << c.kept;
    EXPECT_EQ(std::string(choose_spmm(desc, isa::avx512fp16)->name).find("dozens"),
              std::string::npos);
  }
}

// Pages of codes are asked for in bursts on Zen 4 alone; L1 of the Xeons holds more of x.
TEST(FewTokens, FollowTheHost) {
  const FewTokens &intel = few_tokens(isa::avx512fp16), &zen4 = few_tokens(isa::avx512bf16);
  EXPECT_EQ(intel.code_bursts, 0);
  EXPECT_GT(intel.burst_bytes, 0);
  EXPECT_GT(intel.strip_bytes, zen4.strip_bytes);
  EXPECT_GT(zen4.code_bursts, 0);
  EXPECT_EQ(&few_tokens(isa::amx), &intel);
  EXPECT_EQ(&few_tokens(isa::avx512vbmi2), &intel);
}

// About 16 tokens: weights expanded once, in f32 on Emerald Rapids, where strips expand them
// twice; fewer weights are left out one by one.
TEST(ChooseSpmm, EmeraldRapidsTakesColumnsInF32) {
  SpmmDesc desc = desc_of(Format::bitmap, DType::bf16, DType::bf16);
  desc.n = desc.k = 4096;
  desc.nnz = desc.n * desc.k / 2;
  desc.m = 16;
  const char* columns = "spmm_bitmap_bf16_bf16_avx512vbmi2_columns";
  EXPECT_STREQ(choose_spmm(desc, isa::avx512vbmi2)->name, columns);
  EXPECT_STREQ(choose_spmm(desc, isa::amx)->name, "spmm_bitmap_bf16_bf16_amx_tiles");
  desc.m = 13;
  EXPECT_STREQ(choose_spmm(desc, isa::avx512vbmi2)->name,
               "spmm_bitmap_bf16_bf16_avx512vbmi2_strips");
  desc.w_dtype = desc.x_dtype = DType::f32;
  desc.m = 16;
  EXPECT_STREQ(choose_spmm(desc, isa::avx512vbmi2)->name,
               "spmm_bitmap_f32_f32_avx512vbmi2_columns");
  desc.nnz = desc.n * desc.k / 5;
  EXPECT_STREQ(choose_spmm(desc, isa::avx512vbmi2)->name, "spmm_bitmap_f32_f32_avx512vbmi2_skip");
}

// A weight of 4096 x 4096, and the end of the name of the kernel that is to be chosen for it.
struct Chosen {
  DType dtype;
  int64_t tokens, kept;  // of a hundred
  const char* kernel;

  SpmmDesc desc(Format format) const {
    SpmmDesc made = desc_of(format, dtype, dtype);
    made.m = tokens;
    made.n = made.k = 4096;
    made.nnz = made.n * made.k / 100 * kept;
    return made;
  }
};

// Zen 4 lists the columns that a row stores where that leaves out enough, else it expands the next
// weights beside products. Neither was timed on other hosts.
TEST(ChooseSpmm, Zen4ListsColumnsForSeveralTokens) {
  constexpr DType f32 = DType::f32, bf16 = DType::bf16;
  for (const Chosen& c : {Chosen{f32, 8, 50, "f32_f32_avx512bf16_octets"},
                          {f32, 8, 20, "f32_f32_avx512vbmi2_octetlists"},
                          {f32, 16, 100, "f32_f32_avx512bf16_columns"},
                          {f32, 16, 50, "f32_f32_avx512vbmi2_lists"},
                          {f32, 16, 10, "f32_f32_avx512vbmi2_lists"},
                          {f32, 32, 20, "f32_f32_avx512vbmi2_widelists"},
                          {f32, 256, 20, "f32_f32_avx512vbmi2_skip"},
                          {bf16, 8, 10, "bf16_bf16_avx512bf16_octets"},
                          {bf16, 16, 50, "bf16_bf16_avx512bf16_columns"},
                          {bf16, 16, 10, "bf16_bf16_avx512vbmi2_lists"}}) {
    const SpmmDesc desc = c.desc(Format::bitmap);
    EXPECT_EQ(choose_spmm(desc, isa::avx512bf16)->name, std::string("spmm_bitmap_") + c.kernel)
        << c.tokens << " tokens, " << c.kept << " % kept";
    for (const IsaBits others : {isa::avx512, isa::avx512vbmi2, isa::avx512fp16, isa::amx}) {
      const std::string name = choose_spmm(desc, others)->name;
      const bool lists = name.ends_with("lists") && name.find("avx512vbmi2") != name.npos;
      EXPECT_FALSE(lists || name.ends_with("avx512bf16_octets")) << name;
    }
  }
}

// Without AVX-512 lists take what AVX2 would expand for a few tokens each: of masks as of csr8.
TEST(ChooseSpmm, Avx2ListsColumnsForSeveralTokens) {
  constexpr DType f32 = DType::f32, bf16 = DType::bf16;
  for (const Format format : {Format::bitmap, Format::nm}) {
    for (const Chosen& c : {Chosen{f32, 1, 5, "f32_f32_avx2"},
                            {f32, 2, 5, "f32_f32_avx2"},
                            {f32, 4, 10, "f32_f32_avx2_quadlists"},
                            {f32, 8, 10, "f32_f32_avx2_octetlists"},
                            {f32, 16, 10, "f32_f32_avx2_lists"},
                            {f32, 16, 50, "f32_f32_avx2_lists"},
                            {f32, 256, 50, "f32_f32_avx2_panels"},
                            {bf16, 1, 50, "bf16_bf16_avx2"},
                            {bf16, 4, 50, "bf16_bf16_avx2"},
                            {bf16, 8, 10, "bf16_bf16_avx2_octetlists"},
                            {bf16, 16, 10, "bf16_bf16_avx2_lists"},
                            {bf16, 256, 50, "bf16_bf16_avx2_panels"}}) {
      const SpmmDesc desc = c.desc(format);
      EXPECT_EQ(choose_spmm(desc, isa::avx2)->name,
                std::string("spmm_") + name_of(format) + "_" + c.kernel)
          << c.tokens << " tokens, " << c.kept << " % kept";
      const std::string intel = choose_spmm(desc, isa::avx512vbmi2)->name;  // not timed there
      EXPECT_EQ(intel.find("avx2"), intel.npos) << intel;
    }
  }
}

// Tiles cost as much for one token as for sixteen, and little more for many.
TEST(ChooseSpmm, TilesOfAmxTakeAllButTheFewestTokens) {
  for (const auto& [format, t, kernel] :
       {std::tuple{Format::bitmap, DType::bf16, "spmm_bitmap_bf16_bf16_amx_tiles"},
        {Format::nm, DType::bf16, "spmm_nm_bf16_bf16_amx_tiles"},
        {Format::csr8, DType::bf16, "spmm_csr8_bf16_bf16_amx_tiles"},
        {Format::bitmap, DType::i8, "spmm_bitmap_i8_bf16_amx_codetiles"}}) {
    SpmmDesc desc = desc_of(format, t, DType::bf16);
    desc.n = desc.k = 4096;
    desc.nnz = desc.n * desc.k / 10;
    for (const int64_t m : {32, 64, 256, 2000}) {
      desc.m = m;
      EXPECT_STREQ(choose_spmm(desc, isa::amx)->name, kernel) << m << " tokens";
      EXPECT_STRNE(choose_spmm(desc, isa::avx512bf16)->name, kernel) << m << " tokens";
    }
    desc.m = 1;
    EXPECT_STRNE(choose_spmm(desc, isa::amx)->name, kernel);
  }
  // Where vdpbf16ps takes two cycles, two products in f32 are faster.
  SpmmDesc one = desc_of(Format::bitmap, DType::bf16, DType::bf16);
  one.n = one.k = 4096;
  one.nnz = one.n * one.k / 2;
  EXPECT_STREQ(choose_spmm(one, isa::amx)->name, "spmm_bitmap_bf16_bf16_avx512vbmi2");
  EXPECT_STREQ(choose_spmm(one, isa::avx512bf16)->name, "spmm_bitmap_bf16_bf16_avx512bf16");
}
#endif

#if defined(__aarch64__)
TEST(ChooseSpmm, ManyTokensTakeMatrixProductsOrLeaveZerosOut) {
  const auto name = [](Format format, DType w, DType x, int64_t m, IsaBits isa, int kept = 50) {
    SpmmDesc desc = desc_of(format, w, x);
    desc.m = m;
    desc.nnz = desc.n * desc.k * kept / 100;
    return std::string(choose_spmm(desc, isa)->name);
  };
  constexpr DType f32 = DType::f32, bf16 = DType::bf16, i8 = DType::i8;
  EXPECT_EQ(name(Format::bitmap, f32, f32, 32, isa::neon), "spmm_bitmap_f32_f32_neon_skip");
  EXPECT_EQ(name(Format::block, f32, f32, 32, isa::neon_bf16), "spmm_block_f32_f32_neon_skip");
  EXPECT_EQ(name(Format::nm, bf16, bf16, 8, isa::neon_bf16), "spmm_nm_bf16_bf16_neon_bf16_pairs");
  EXPECT_EQ(name(Format::nm, bf16, bf16, 8, isa::neon_fhm), "spmm_nm_bf16_bf16_neon_skip");
  for (const int64_t m : {8, 256}) {
    EXPECT_EQ(name(Format::bitmap, bf16, bf16, m, isa::neon_bf16, 20),
              "spmm_bitmap_bf16_bf16_neon_bf16_pairs");
    EXPECT_EQ(name(Format::bitmap, bf16, bf16, m, isa::neon_bf16, 10),
              "spmm_bitmap_bf16_bf16_neon_skip");
  }
  EXPECT_EQ(name(Format::bitmap, bf16, bf16, 5, isa::neon_bf16, 10),
            "spmm_bitmap_bf16_bf16_neon_bf16_pairs");
  EXPECT_EQ(name(Format::csr8, bf16, bf16, 8, isa::neon_bf16), "spmm_csr8_bf16_bf16_neon_skip");
  EXPECT_EQ(name(Format::nm, i8, bf16, 2, isa::neon_bf16), "spmm_nm_i8_bf16_neon_bf16_codepairs");
  EXPECT_EQ(name(Format::nm, i8, bf16, 2, isa::neon_dot), "spmm_nm_i8_bf16_neon_dot_codes");
}
#endif

TEST(ChooseSpmm, NamesAreUniqueAndSayWhatTheyAre) {
  std::set<std::string> names;
  for (const SpmmRow& row : spmm_kernels()) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    const std::string want = std::string("spmm_") + name_of(row.format) + "_" +
                             name_of(row.w_dtype) + "_" + name_of(row.x_dtype) + "_" +
                             isa_name(row.isa);
    const std::string form = row.x_form ? "_" : "";  // a prepared x adds the name of its form
    EXPECT_TRUE(std::string(row.name).starts_with(want + form)) << row.name;
    EXPECT_EQ(row.name == want, row.x_form == nullptr) << row.name;
    EXPECT_GE(row.from_m, 1);
    EXPECT_GE(row.tile_m, 1);
    EXPECT_GE(row.tile_n, 1);
  }
}

#if defined(__x86_64__)
// Sparse wins for few tokens on every vector ISA, a faster one for longer, and a sparser matrix
// in a format that pays per value for longer still.
TEST(Cost, DenseAboveGrowsWithTheKernelAndWithSparsity) {
  const auto above = [](const SpmmDesc& desc, IsaBits isa) {
    return spmm_dense_above(desc, isa, reference_machine(), {}, 1);
  };
  for (const DType t : {DType::f32, DType::bf16}) {
    SpmmDesc masked = desc_of(Format::bitmap, t, t);
    masked.n = masked.k = 1024;
    masked.nnz = masked.n * masked.k / 2;
    EXPECT_GE(above(masked, isa::avx2), 8);
    EXPECT_GE(above(masked, isa::avx512bf16), above(masked, isa::avx2));
    SpmmDesc sparse = masked;
    sparse.format = Format::csr;
    sparse.nnz /= 4;
    SpmmDesc sparser = sparse;
    sparser.nnz /= 4;
    EXPECT_GE(above(sparser, isa::avx512), above(sparse, isa::avx512));
    // Where nothing is left out, nothing needs unpacking.
    SpmmDesc full = masked;
    full.w_dtype = full.x_dtype = DType::bf16;
    full.nnz = full.n * full.k;
    SpmmDesc nearly = full;
    --nearly.nnz;
    EXPECT_LE(above(full, isa::avx512bf16), above(nearly, isa::avx512bf16));
    EXPECT_LT(above(full, isa::avx2), above(nearly, isa::avx2));
    EXPECT_GT(above(full, isa::avx512bf16), above(full, isa::avx2));
  }
}

#endif

#if defined(__x86_64__)
// Without AVX-512 torch multiplies 16-bit floats one by one, so prompts stay with kernels.
TEST(Cost, WithoutAvx512PromptsOf16BitsStaySparse) {
  const Machine& machine = reference_machine(isa::avx2);
  EXPECT_EQ(machine.isa, isa::avx2);
  SpmmDesc desc = desc_of(Format::bitmap, DType::bf16, DType::bf16);
  desc.n = desc.k = 4096;
  desc.nnz = desc.n * desc.k / 2;
  EXPECT_EQ(spmm_dense_above(desc, isa::avx2, machine, {}, 1), INT64_MAX);
  EXPECT_EQ(spmm_dense_above(desc, isa::avx2, machine, {}, 2), INT64_MAX);
}

// Products that take as long as torch's are not given to it: its calls between others take longer
// than alone.
TEST(Cost, DenseMustClearlyGain) {
  SpmmDesc full = desc_of(Format::bitmap, DType::bf16, DType::bf16);
  full.n = full.k = 512;
  full.nnz = full.n * full.k;
  const Machine& machine = reference_machine();
  EXPECT_GE(spmm_dense_above(full, isa::avx512bf16, machine, {}, 1), 3136);
  Machine faster = machine;
  for (auto& all : faster.dense_16.ns) {
    for (auto& wide : all) {
      for (double& ns : wide) ns *= 0.85;
    }
  }
  EXPECT_LT(spmm_dense_above(full, isa::avx512bf16, faster, {}, 1), 196);
}
#endif

TEST(Cost, GrowsWithTokensBytesAndFewerThreads) {
  for (const SpmmRow& row : spmm_kernels()) {
    SpmmDesc desc = desc_of(row.format, row.w_dtype, row.x_dtype);
    desc.n = desc.k = 4096;
    desc.nnz = desc.n * desc.k / 2;
    const auto ns = [&](const SpmmDesc& d, int threads) {
      return predict_spmm(d, row, reference_machine(), 1.0, threads);
    };
    if (spmm_cost(row, reference_machine().isa) == nullptr) continue;
    double before = 0;
    for (const int64_t m : {1, 2, 8, 9, 64, 256}) {
      desc.m = m;
      EXPECT_GT(ns(desc, 1), before) << row.name << " m " << m;
      EXPECT_LT(ns(desc, 2), ns(desc, 1)) << row.name << " m " << m;
      before = ns(desc, 1);
      SpmmDesc half = desc;
      half.nnz /= 2;
      EXPECT_LE(ns(half, 1), ns(desc, 1)) << row.name << " m " << m;
    }
    desc.m = 1;  // no kernel is expected to read faster than memory does
    EXPECT_GE(ns(desc, 1), stored_bytes(desc) / reference_machine().weights_one) << row.name;
  }
}

TEST(Cost, DenseTimesLieBetweenTheTimedOnes) {
  const Machine& machine = reference_machine();
  for (const DType t : {DType::f32, DType::bf16}) {
    for (const int threads : {1, 2}) {
      double before = 0;
      for (const int64_t m : {1, 2, 4, 8, 16, 64, 256, 1024}) {
        const double ns = dense_ns(machine, t, m, 4096, 4096, threads);
        EXPECT_GE(ns, 0.8 * before) << m;  // a measured table need not be monotone
        before = ns;
      }
    }
  }
  EXPECT_GT(weight_rate(machine, 2), weight_rate(machine, 1));
  EXPECT_EQ(weight_rate(machine, 8), weight_rate(machine, machine.threads));
  EXPECT_GT(compute_rate(machine, 2), 1.5);
  EXPECT_EQ(compute_rate(machine, 1), 1);
}

TEST(Isa, NamesRoundTripAndUnknownNamesAreRefused) {
  for (const char* name : {"scalar", "avx2", "avx512", "avx512vbmi2", "avx512bf16", "avx512fp16",
                           "amx", "neon", "neon_dot", "neon_fhm", "neon_bf16"}) {
    IsaBits bits = ~0u;
    ASSERT_TRUE(isa_from_name(name, &bits));
    EXPECT_STREQ(isa_name(bits), name);
  }
  IsaBits bits = 5;
  EXPECT_FALSE(isa_from_name("avx-512", &bits));
  EXPECT_EQ(bits, 5u);
  EXPECT_EQ(active_isa() & ~host_isa(), 0u);
}

}  // namespace
}  // namespace tamis::test
