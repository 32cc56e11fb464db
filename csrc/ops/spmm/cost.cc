// The cost model of spmm. Pure: the machine is an argument.
#include "ops/spmm/cost.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace tamis {
namespace {

struct Line {
  const char* name;
  SpmmCost cost;
};

#define TAMIS_COST(name, word, word_token, value, value_token, row, row_token, x) \
  {#name, {word, word_token, value, value_token, row, row_token, x}},
constexpr Line kZen4[] = {
#include "ops/spmm/costs.def"
};
constexpr Line kIntel[] = {
#include "ops/spmm/costs_intel.def"
};
constexpr Line kNeon[] = {
#include "ops/spmm/costs_neon.def"
};
#undef TAMIS_COST

// Every portable kernel visits stored values one by one.
constexpr SpmmCost kScalar{.word = 0,
                           .word_token = 0,
                           .value = 1.0,
                           .value_token = 0.6,
                           .row = 20,
                           .row_token = 0,
                           .x = 0};

const SpmmCost* line_of(const SpmmRow& row, std::span<const Line> lines) {
  const auto line = std::find_if(lines.begin(), lines.end(),
                                 [&](const Line& a) { return std::strcmp(a.name, row.name) == 0; });
  return line != lines.end() ? &line->cost : nullptr;
}

// Constants in the order of spmm_kernels(), so that a row finds its own by its position. What was
// not fitted on Emerald Rapids has the constants of Zen 4.
std::vector<const SpmmCost*> by_row(bool intel) {
  std::vector<const SpmmCost*> found;
  for (const SpmmRow& row : spmm_kernels()) {
    const SpmmCost* cost = intel ? line_of(row, kIntel) : nullptr;
    if (!cost) cost = line_of(row, kZen4);
    found.push_back(cost ? cost : row.isa == isa::scalar ? &kScalar : nullptr);
  }
  return found;
}

size_t position(const SpmmRow& row) {
  return static_cast<size_t>(&row - spmm_kernels().data());
}

// Fitted to cold times on the reference machine: a kernel's usual over its least time in cache, and
// ns that the start of a row costs where its weights are in memory.
constexpr double kTypical = 1.06, kRow = 5;

double real(int64_t v) {
  return static_cast<double>(v);
}

// Share of a dense product's expected time that it must gain, or what expanding for it takes: a
// call of torch's between others takes 10 to 45 us more than alone (512x512 on Zen 4, bf16, all
// kept, 784 tokens: 1.01 to 1.03 of torch's own time by torch, 0.92 by the kernel).
constexpr double kClearly = 0.05;

// Whether the values as they are stored are the dense weight that a dense product wants.
bool stores_dense(const SpmmDesc& d) {
  return is_float(d.w_dtype) && d.w_dtype == d.x_dtype && d.format != Format::block &&
         d.nnz == d.n * d.k;
}

}  // namespace

const SpmmCost* spmm_cost(const SpmmRow& row, IsaBits isa) {
  static const std::vector<const SpmmCost*> zen4 = by_row(false), intel = by_row(true);
  return (has_intel_costs(isa) ? intel : zen4)[position(row)];
}

const SpmmCost* spmm_choice_cost(const SpmmRow& row, IsaBits isa) {
  static const std::vector<const SpmmCost*> estimated = [] {
    std::vector<const SpmmCost*> found;
    for (const SpmmRow& r : spmm_kernels()) found.push_back(line_of(r, kNeon));
    return found;
  }();
  const SpmmCost* cost = estimated[position(row)];
  return cost ? cost : spmm_cost(row, isa);
}

double stored_bytes(const SpmmDesc& d) {
  const double values = real(value_elements(d.w_dtype, d.nnz) * size_of(d.w_dtype));
  const double scales = d.w_dtype == DType::i8 ? 4 * real(d.n) : 0;
  const double mask = 8 * real(d.n * mask_words(d.k)), offsets = 8 * real(d.n + 1);
  switch (d.format) {
    case Format::bitmap:
      return values + scales + mask + offsets;
    case Format::nm:
      return values + scales + mask;
    case Format::csr:
      return values + scales + offsets + 4 * real(d.nnz);
    case Format::csr8:
      return values + scales + offsets + real(d.nnz + d.n * mask_words(d.k));
    case Format::block: {
      const int64_t area = std::max<int64_t>(int64_t{d.block_rows} * d.block_cols, 1);
      return values + scales + 4 * real(d.nnz / area) +
             8 * real(d.n / std::max(d.block_rows, 1) + 1);
    }
    case Format::groupq: {
      const int64_t size = std::max<int64_t>(d.group_size, 1);
      return values + 4 * real(d.nnz / size) + 8 * real(d.n * mask_words(d.k / size)) + offsets;
    }
  }
  return values;
}

double compute_ns(const SpmmDesc& d, const SpmmRow& row, const SpmmCost& c) {
  const int64_t lanes = row.x_form ? row.x_form->lanes : 1;
  const double m = real(ceil_div(d.m, lanes) * lanes), passes = real(ceil_div(d.m, row.tile_m));
  const double words = real(d.n * mask_words(d.k));
  return words * (c.word * passes + c.word_token * m) +
         real(d.nnz) * (c.value * passes + c.value_token * m) +
         real(d.n) * (c.row * passes + c.row_token * m) + c.x * real(d.k) * m;
}

double predict_spmm(const SpmmDesc& desc, const SpmmRow& row, const Machine& machine, double scale,
                    int threads) {
  const SpmmCost* cost = spmm_cost(row, machine.isa);
  if (!cost) return -1;
  threads = useful_threads(desc, row, threads);
  const double compute =
      kTypical * scale * compute_ns(desc, row, *cost) / compute_rate(machine, threads);
  const double moved =
      stored_bytes(desc) + real((desc.n + desc.k) * desc.m * size_of(desc.x_dtype));
  const double memory = moved / weight_rate(machine, threads) + kRow * real(desc.n) / threads;
  const double both = std::cbrt(compute * compute * compute + memory * memory * memory);
  const double forks = threads > 1 ? machine.fork * (row.x_form && !row.x_form->own ? 2 : 1) : 0;
  return both + forks;
}

int64_t spmm_dense_above(const SpmmDesc& desc, IsaBits isa, const Machine& machine,
                         std::span<const double> scale, int threads) {
  constexpr int64_t kNever = std::numeric_limits<int64_t>::max(), kMost = 1 << 16;
  SpmmDesc at = desc;
  at.m = 1;
  if (!choose_spmm(at, isa)) return 0;
  if (desc.n <= 0 || desc.k <= 0) return kNever;
  const double expand = stores_dense(desc) ? 0
                                           : unpack_ns(machine, desc.w_dtype, desc.n, desc.k,
                                                       stored_bytes(desc), threads);
  const auto dense_wins = [&](int64_t m) {
    at.m = m;
    const SpmmRow& row = *choose_spmm(at, isa);
    const double own = scale.empty() ? 1.0 : scale[position(row)];
    const double sparse = predict_spmm(at, row, machine, own, threads);
    const double dense = dense_ns(machine, desc.x_dtype, m, desc.n, desc.k, threads);
    return sparse >= 0 && sparse > dense + std::max(expand, kClearly * dense);
  };
  // The times cross once where it matters; look for the last count at which the kernel wins.
  if (!dense_wins(kMost)) return kNever;
  int64_t low = 0, high = kMost;
  for (int64_t m = kMost / 2; m >= 1 && low == 0; m /= 2) {
    if (dense_wins(m)) {
      high = m;
    } else {
      low = m;
    }
  }
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (dense_wins(middle) ? high : low) = middle;
  }
  return low;
}

}  // namespace tamis
