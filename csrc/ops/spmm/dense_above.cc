// Where expanding w and calling a dense product overtakes the sparse kernels.
//
// Model, in nanoseconds per element of w [n, k] on one thread, both sides scaling alike with more:
//   sparse(m)          = sparse_per_token * m
//   expand + dense(m)  = expand + dense_start + dense_per_token * m
// so the lines cross at m = (expand + dense_start) / (sparse_per_token - dense_per_token).
// Constants: fitted to times of this library against torch 2.13 F.linear on a Zen 4 core, shapes
// [576, 576], [1536, 576], [576, 1536], m = 1 to 128; the table is in bench/RESULTS.md. Below
// AVX-512 the dense side is still that host's, so the limit there errs towards dense.
#include <cstdint>
#include <limits>

#include "ops/spmm/spmm.h"

namespace tamis {
namespace {

struct Dense {
  double start, per_token;
};

constexpr Dense dense_cost(DType x) {
  return x == DType::f32 ? Dense{.start = 0.40, .per_token = 0.0231}
                         : Dense{.start = 0.35, .per_token = 0.0110};
}

// Masked formats expand every word, so sparsity does not change their time per token; the others
// pay per stored value.
double sparse_per_token(const SpmmDesc& d, const SpmmRow& kernel) {
  const double density = static_cast<double>(d.nnz) / static_cast<double>(d.n * d.k);
  const bool narrow = d.x_dtype != DType::f32;
  if (kernel.isa == isa::scalar) return 0.6 * density;
  switch (d.format) {
    case Format::bitmap:
    case Format::nm:
      if (kernel.isa == isa::avx2) return narrow ? 0.035 : 0.057;
      return narrow && kernel.isa == isa::avx512bf16 ? 0.018 : 0.035;
    case Format::csr:
      return (narrow ? 0.83 : 0.42) * density;
    case Format::block:
      return 0.031 * density;
  }
  return 0;
}

double expand(Format format) {
  return format == Format::csr ? 0.25 : 0.55;
}

}  // namespace

int64_t spmm_dense_above(const SpmmDesc& desc, IsaBits isa) {
  constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  const SpmmRow* kernel = choose_spmm(desc, isa);
  if (!kernel) return 0;
  if (desc.n <= 0 || desc.k <= 0) return kNever;
  const Dense dense = dense_cost(desc.x_dtype);
  const double per_token = sparse_per_token(desc, *kernel) - dense.per_token;
  if (per_token <= 0) return kNever;
  const double tokens = (expand(desc.format) + dense.start) / per_token;
  return tokens < 1e6 ? static_cast<int64_t>(tokens) : kNever;
}

}  // namespace tamis
