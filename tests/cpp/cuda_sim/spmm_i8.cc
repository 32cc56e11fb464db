// Rows of kernels_cuda.def that multiply 8-bit codes, on the simulator: against float64 with x as
// the kernel must round it, by a rounding written from its description alone; integers bit for bit;
// guard pages round every array, NaN in every padding.
#include "ops/spmm/spmm_i8.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "cuda_sim/problem.h"
#include "ops/spmm/m24i8_expand.cuh"
#include "ops/spmm/t16i8_expand.cuh"

namespace tamis::test {
namespace {

constexpr uint16_t kUnwritten = 0x7fff;

struct ByteRow {
  const char* name;
  PackedFormat format;
  DType dtype;
  std::string (*run)(const sim::Launch&, const SpmmI8Params&, int token_tiles);
  std::string (*quantize)(const sim::Launch&, const QuantizeXParams&);
};

template <PackedFormat kFormat, DType kType, bool kGrouped, bool kBulk>
std::string simulate_bytes(const sim::Launch& launch, const SpmmI8Params& p, int token_tiles) {
  const auto simulate = [&]<int kTiles>(std::integral_constant<int, kTiles>) {
    return sim::launch(launch,
                       [&] { spmm_i8<ByteConfig<kFormat, kType, kTiles, kGrouped, kBulk>>(p); });
  };
  return with_constant<1, 2, 4, 8>(token_tiles, simulate);
}

template <PackedFormat kFormat, DType kType, bool kBulk>
std::string simulate_any(const sim::Launch& launch, const SpmmI8Params& p, int token_tiles) {
  return p.group_tiles > 0 ? simulate_bytes<kFormat, kType, true, kBulk>(launch, p, token_tiles)
                           : simulate_bytes<kFormat, kType, false, kBulk>(launch, p, token_tiles);
}

template <DType kType>
std::string simulate_quantize(const sim::Launch& launch, const QuantizeXParams& p) {
  return sim::launch(launch, [&] { quantize_x<kType>(p); });
}

const std::vector<ByteRow>& byte_rows() {
  static const std::vector<ByteRow> rows = {
#define TAMIS_SPMM_CUDA(format, w, x, capability, exact)
#define TAMIS_SPMM_CUDA_I8(format, w, x, capability, exact)               \
  {"spmm_" #format "_" #w "_" #x "_bulk", PackedFormat::format, DType::x, \
   &simulate_any<PackedFormat::format, DType::x, true>, &simulate_quantize<DType::x>},
#include "ops/spmm/kernels_cuda.def"
#undef TAMIS_SPMM_CUDA
      // Before sm_90; records of m24i8 pass no ring.
      {"spmm_t16i8_i8_bf16_async", PackedFormat::t16i8, DType::bf16,
       &simulate_any<PackedFormat::t16i8, DType::bf16, false>, &simulate_quantize<DType::bf16>},
  };
  return rows;
}

struct ByteProblem {
  int64_t n = 0, k = 0, m = 0;
  int keep = 2;          // m24i8: of four
  double density = 0.5;  // t16i8
  int64_t group_size = 0;
  bool integers = false;  // whose codes, steps and sums are exact
  bool bias = true;
  int64_t x_padding = 0, y_padding = 0;
  uint64_t seed = 1;
};

// x[token] as codes and steps: the nearest multiple of largest / 127 of each 256 columns.
struct Rounded {
  std::vector<double> codes, steps;  // [k], [chunks]

  Rounded(const uint16_t* x, int64_t k, DType dtype) : codes(k), steps(ceil_div(k, 256)) {
    for (int64_t first = 0; first < k; first += 256) {
      const int64_t end = std::min(k, first + 256);
      float largest = 0;
      bool finite = true;
      for (int64_t c = first; c < end; ++c) {
        const float v = std::fabs(widened(x[c], dtype));
        finite = finite && std::isfinite(v);
        largest = std::max(largest, v);
      }
      steps[first / 256] = finite ? double{largest / 127.0f} : std::nan("");
      for (int64_t c = first; c < end; ++c) {
        codes[c] = largest > 0 ? std::nearbyint(double{widened(x[c], dtype)} * 127 / largest) : 0;
      }
    }
  }
};

class ByteCase {
 public:
  ByteCase(const ByteProblem& problem, const ByteRow& row)
      : p_(problem), row_(row), random_(problem.seed) {
    if (row.format != PackedFormat::t16i8) p_.k = ceil_div(p_.k, 4) * 4;
    make_weights();
    make_vectors();
  }

  const PackedView& view() const { return tiles_->view; }
  const std::vector<int8_t>& codes() const { return codes_; }  // dense
  float scale(int64_t row, int64_t col) const {
    const int64_t groups = scale_groups(p_.k, p_.group_size);
    return (*canonical_.scales)[row * groups + col / group_columns(p_.k, p_.group_size)];
  }
  uint16_t* x(int64_t token) { return x_->data() + token * (p_.k + p_.x_padding); }
  const Guarded<uint16_t>& y() const { return *y_; }
  int64_t k() const { return p_.k; }

  std::string run(const SpmmCudaPlan& plan, uint64_t seed) {
    std::vector<uint64_t> workspace(static_cast<size_t>(ceil_div(plan.workspace_bytes, 16)) * 2, 0);
    std::fill(workspace.begin() + (workspace.empty() ? 0 : kWorkspaceTicketBytes / 8),
              workspace.end(), ~uint64_t{0});
    std::fill(y_->span().begin(), y_->span().end(), kUnwritten);
    const SpmmCudaArgs args{.w = tiles_->view,
                            .m = p_.m,
                            .x = x_->data(),
                            .x_stride = p_.k + p_.x_padding,
                            .bias = p_.bias ? bias_->data() : nullptr,
                            .y = y_->data(),
                            .y_stride = p_.n + p_.y_padding,
                            .workspace = workspace.data(),
                            .workspace_bytes = plan.workspace_bytes};
    const SpmmI8Params p = spmm_i8_params(args, plan);
    if (p.codes != nullptr) {
      const QuantizeXParams q = quantize_x_params(args, plan);
      const auto blocks = static_cast<uint32_t>(ceil_div(int64_t{q.m} * q.chunks, kBlockWarps));
      const std::string wrong =
          row_.quantize({.grid = {blocks}, .block = {kBlockThreads}, .seed = seed}, q);
      if (!wrong.empty()) return wrong;
    }
    const std::string wrong = row_.run(
        {.grid = {static_cast<uint32_t>(plan.blocks_n), static_cast<uint32_t>(plan.splits)},
         .block = {kBlockThreads},
         .shared_bytes = static_cast<size_t>(plan.shared_bytes),
         .seed = seed},
        p, plan.token_tiles);
    if (!wrong.empty()) return wrong;
    for (int64_t i = 0; plan.splits > 1 && i < plan.blocks_n; ++i) {
      if (reinterpret_cast<uint32_t*>(workspace.data())[i] != 0)
        return "a ticket is not zero again";
    }
    return compare();
  }

 private:
  uint16_t number() {
    if (p_.integers) {
      return narrowed(static_cast<float>(static_cast<int>(random_() % 7) - 3), row_.dtype);
    }
    return narrowed(std::normal_distribution<float>()(random_), row_.dtype);
  }

  void make_weights() {
    const auto count = static_cast<size_t>(p_.n * p_.k);
    std::vector<float> dense(count, 0);
    std::vector<uint8_t> keep(count, 0);
    const int limit = row_.format == PackedFormat::m24i4 ? 7 : 127;
    const auto set = [&](size_t j) {
      keep[j] = 1;
      dense[j] = p_.integers
                     ? static_cast<float>(static_cast<int>(random_() % (2 * limit + 1)) - limit)
                     : std::normal_distribution<float>()(random_);
    };
    const bool sparse24 = row_.format != PackedFormat::t16i8;
    for (size_t i = 0; sparse24 && i < count; i += 4) {
      for (int kept = 0; kept < p_.keep;) {
        const size_t j = i + random_() % 4;
        if (keep[j]) continue;
        set(j);
        ++kept;
      }
    }
    std::uniform_real_distribution<double> uniform;
    for (size_t j = 0; !sparse24 && j < count; ++j) {
      if (uniform(random_) < p_.density) set(j);
    }
    if (p_.integers) {  // a scale of one, or of zero
      for (int64_t r = 0; r < p_.n; ++r) {
        for (int64_t c = r * p_.k; c < (r + 1) * p_.k; ++c) {
          if (keep[c]) {
            dense[c] = static_cast<float>(limit);
            break;
          }
        }
      }
    }
    const DenseView w{
        .data = dense.data(), .rows = p_.n, .cols = p_.k, .stride = p_.k, .keep = keep.data()};
    const PackSpec spec{.format = sparse24 ? Format::nm : Format::bitmap,
                        .dtype = DType::i8,
                        .keep = sparse24 ? p_.keep : 0,
                        .of = sparse24 ? 4 : 0,
                        .group_size = p_.group_size,
                        .code_limit = limit};
    must(pack_guarded(w, spec, &canonical_));
    codes_.assign(count, 0);
    const auto* values = reinterpret_cast<const int8_t*>(canonical_.values->data());
    int64_t i = 0;
    for (size_t j = 0; j < count; ++j) {
      if (keep[j]) codes_[j] = values[i++];
    }
    tiles_ = std::make_unique<PackedTiles>(row_.format, canonical_.view);
    PackedView& view = tiles_->view;
    view.dtype = row_.dtype;
    view.scales = canonical_.scales->data();
    view.group_size = p_.group_size;
  }

  void make_vectors() {
    const auto length = [&](int64_t width, int64_t padding) {
      return static_cast<size_t>((p_.m - 1) * (width + padding) + width);
    };
    x_ = std::make_unique<Guarded<uint16_t>>(length(p_.k, p_.x_padding));
    y_ = std::make_unique<Guarded<uint16_t>>(length(p_.n, p_.y_padding));
    bias_ = std::make_unique<Guarded<uint16_t>>(static_cast<size_t>(p_.n));
    std::fill(x_->span().begin(), x_->span().end(), kUnwritten);
    for (int64_t t = 0; t < p_.m; ++t) {
      for (int64_t c = 0; c < p_.k; ++c) x(t)[c] = number();
      for (int64_t c = 0; p_.integers && c < p_.k; c += 256) x(t)[c] = narrowed(127, row_.dtype);
    }
    for (uint16_t& b : bias_->span()) b = number();
  }

  std::string compare() {
    const double eps = row_.dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
    for (int64_t t = 0; t < p_.m; ++t) {
      const Rounded rounded(x(t), p_.k, row_.dtype);
      for (int64_t r = 0; r < p_.n; ++r) {
        double wanted = 0, magnitude = 0, ties = 0;
        for (int64_t c = 0; c < p_.k; ++c) {
          const double step = rounded.steps[c / 256];
          const double w = static_cast<double>(codes_[r * p_.k + c]) * scale(r, c);
          wanted += w * rounded.codes[c] * step;
          magnitude += std::fabs(w * rounded.codes[c] * step);
          // Where f32 rounds the quotient onto another side of a half, a code is one off.
          const double exact = double{widened(x(t)[c], row_.dtype)} / step;
          if (std::fabs(std::fabs(exact - std::trunc(exact)) - 0.5) < 1e-4)
            ties += std::fabs(w * step);
        }
        if (p_.bias) wanted += widened((*bias_)[r], row_.dtype);
        const uint16_t got = (*y_)[t * (p_.n + p_.y_padding) + r];
        const double off = std::fabs(widened(got, row_.dtype) - wanted);
        const double allowed = eps * std::fabs(wanted) + 0x1p-23 * 32 * magnitude + ties;
        const bool nan = std::isnan(wanted) && std::isnan(widened(got, row_.dtype));
        const bool same = got == narrowed(static_cast<float>(wanted), row_.dtype);
        if (!nan && (p_.integers ? !same : !(off <= allowed))) {
          return "y[" + std::to_string(t) + ", " + std::to_string(r) +
                 "] = " + std::to_string(widened(got, row_.dtype)) + ", wanted " +
                 std::to_string(wanted);
        }
      }
      for (int64_t r = p_.n; r < p_.n + p_.y_padding && t + 1 < p_.m; ++r) {
        if ((*y_)[t * (p_.n + p_.y_padding) + r] != kUnwritten) return "padding of y was written";
      }
    }
    return {};
  }

  ByteProblem p_;
  const ByteRow& row_;
  std::mt19937_64 random_;
  std::vector<int8_t> codes_;
  std::unique_ptr<Guarded<uint16_t>> x_, y_, bias_;
  Packed canonical_;
  std::unique_ptr<PackedTiles> tiles_;
};

class SpmmI8 : public testing::TestWithParam<ByteRow> {
 protected:
  void expect_right(const ByteProblem& p, int32_t warps_k, int32_t splits) {
    ByteCase c(p, GetParam());
    SpmmCudaPlan plan;
    if (warps_k > 0) {
      plan = lay_out_spmm_t16(c.view(), p.m, warps_k, splits);
    } else {
      ASSERT_TRUE(plan_spmm_t16(c.view(), p.m, kH100, &plan).ok());
    }
    EXPECT_EQ(c.run(plan, p.seed), "")
        << "n " << p.n << ", k " << p.k << ", m " << p.m << ", seed " << p.seed << ", "
        << plan.warps_k << " warps and " << plan.splits << " blocks over k";
  }
};

TEST_P(SpmmI8, Shapes) {
  uint64_t seed = 100;
  for (const auto& [n, k] :
       {std::pair{16, 64}, {17, 65}, {1, 8}, {50, 200}, {33, 256}, {130, 581}}) {
    for (const double density : {0.0, 0.1, 0.5, 1.0}) {
      for (const bool integers : {false, true}) {
        expect_right({.n = n,
                      .k = k,
                      .m = 3,
                      .keep = density < 0.5 ? 1 : 2,
                      .density = density,
                      .integers = integers,
                      .bias = integers,
                      .seed = ++seed},
                     0, 0);
      }
    }
  }
}

TEST_P(SpmmI8, Tokens) {
  uint64_t seed = 200;
  for (const int64_t m : {1, 2, 7, 8, 9, 16, 17, 32, 33, 64}) {
    expect_right({.n = 40, .k = 320, .m = m, .integers = true, .seed = ++seed}, 0, 0);
    expect_right({.n = 40, .k = 520, .m = m, .x_padding = 8, .y_padding = 3, .seed = ++seed}, 2, 2);
  }
}

TEST_P(SpmmI8, PartsOfK) {
  uint64_t seed = 300;
  for (const int32_t warps_k : {1, 2, 4, 8}) {
    for (const int32_t splits : {1, 2, 3, 7}) {
      expect_right({.n = 70, .k = 1100, .m = 5, .x_padding = 1, .seed = ++seed}, warps_k, splits);
    }
  }
  expect_right({.n = 33, .k = 64 * 27, .m = 20, .seed = ++seed}, 4, 2);
  expect_right({.n = 40, .k = 64 * 27, .m = 8, .seed = ++seed}, 1, 1);
}

TEST_P(SpmmI8, GroupsOfColumns) {
  uint64_t seed = 400;
  for (const int64_t group_size : {128, 256, 384, 512}) {
    for (const auto& [m, warps_k, splits] : {std::tuple{3, 1, 1}, {9, 2, 3}, {33, 8, 1}}) {
      expect_right({.n = 37, .k = 1480, .m = m, .group_size = group_size, .seed = ++seed}, warps_k,
                   splits);
    }
  }
  expect_right({.n = 20, .k = 200, .m = 2, .group_size = 128, .seed = ++seed}, 0, 0);
}

TEST_P(SpmmI8, TwoRunsAgreeInEveryBit) {
  for (const int64_t m : {3, 9}) {
    ByteCase c({.n = 100, .k = 1300, .m = m, .seed = 51}, GetParam());
    const SpmmCudaPlan plan = lay_out_spmm_t16(c.view(), m, 2, 3);
    ASSERT_EQ(c.run(plan, 1), "");
    const std::vector<uint16_t> first(c.y().data(), c.y().data() + c.y().size());
    ASSERT_EQ(c.run(plan, 2), "");
    EXPECT_EQ(first, std::vector<uint16_t>(c.y().data(), c.y().data() + c.y().size()));
  }
}

// One outlier coarsens its 256 columns alone; Inf and NaN make every output of the token NaN; x of
// zeros and the smallest numbers are no division by zero.
TEST_P(SpmmI8, ExtremeInputs) {
  for (const int64_t m : {5, 12}) {
    ByteCase c({.n = 20, .k = 600, .m = m, .seed = 61}, GetParam());
    const DType dtype = GetParam().dtype;
    c.x(0)[3] = narrowed(1000, dtype);
    c.x(1)[300] = narrowed(std::numeric_limits<float>::infinity(), dtype);
    c.x(2)[599] = narrowed(std::nanf(""), dtype);
    std::fill_n(c.x(3), c.k(), uint16_t{0});
    std::fill_n(c.x(4), 256, uint16_t{1});
    SpmmCudaPlan plan;
    ASSERT_TRUE(plan_spmm_t16(c.view(), m, kH100, &plan).ok());
    EXPECT_EQ(c.run(plan, 7), "");
    for (int64_t r = 0; r < 20; ++r) {
      EXPECT_TRUE(std::isnan(widened(c.y()[20 + r], dtype)));
      EXPECT_TRUE(std::isnan(widened(c.y()[40 + r], dtype)));
      EXPECT_FALSE(std::isnan(widened(c.y()[r], dtype)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, SpmmI8, testing::ValuesIn(byte_rows()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ExpandI8, IsScaleTimesCode) {
  uint64_t seed = 400;
  for (const ByteRow& row : byte_rows()) {
    for (const auto& [n, k] : {std::pair{16, 64}, {17, 68}, {3, 8}, {50, 200}}) {
      for (const int64_t padding : {0, 3}) {
        const int64_t group_size = k > 100 && padding > 0 ? 128 : 0;
        ByteCase c(
            {.n = n, .k = k, .m = 1, .keep = 1 + n % 2, .group_size = group_size, .seed = ++seed},
            row);
        const int64_t width = c.k(), stride = width + padding;
        const bool sparse24 = row.format != PackedFormat::t16i8;
        std::vector<int8_t> unpacked(c.codes().size());
        row.format == PackedFormat::m24i4
            ? m24i4::unpack(n, width, c.view().records, unpacked.data(), width)
        : sparse24 ? m24i8::unpack(n, width, c.view().records, unpacked.data(), width)
                   : t16i8::unpack(c.view(), unpacked.data(), width);
        ASSERT_EQ(unpacked, c.codes());
        Guarded<uint16_t> out(static_cast<size_t>((n - 1) * stride + width));
        std::fill(out.span().begin(), out.span().end(), kUnwritten);
        const ExpandT16Params p = expand_t16_params(c.view(), out.data(), stride);
        const auto blocks = static_cast<uint32_t>(ceil_div(p.row_tiles * p.col_tiles, kBlockWarps));
        const sim::Launch launch{.grid = {blocks}, .block = {kBlockThreads}, .seed = seed};
        ASSERT_EQ(sim::launch(launch,
                              [&] {
                                row.format == PackedFormat::m24i4 ? expand_m24i4(p)
                                : sparse24                        ? expand_m24i8(p)
                                                                  : expand_t16i8(p);
                              }),
                  "");
        for (int64_t r = 0; r < n; ++r) {
          for (int64_t col = 0; col < width + (r + 1 < n ? padding : 0); ++col) {
            const float w = col < width ? c.codes()[r * width + col] * c.scale(r, col) : 0;
            ASSERT_EQ(out[r * stride + col], col < width ? narrowed(w, row.dtype) : kUnwritten)
                << r << ", " << col;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tamis::test
