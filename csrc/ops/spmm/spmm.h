// spmm: y[m,n] = sum_k x[m,k] * w[n,k] + bias[n], w compressed.
#pragma once

#include <cstdint>
#include <span>

#include "base/isa.h"
#include "base/status.h"
#include "format/matrix.h"

namespace tamis {

// What may follow the product: y = activation(x w^T + bias) * multiplier.
// gelu: y * P(normal <= y); gelu_tanh: its approximation by tanh; silu: y * sigmoid(y).
enum class Activation : int8_t { none, relu, gelu, gelu_tanh, silu };

// x: [m, k] row-major, x_stride elements between rows; y: [m, n], y_stride likewise.
// x, y, bias and multiplier share x_dtype (f32, f16 or bf16); products accumulate in f32.
// Exactly k elements of each x row are read. y must not overlap x.
struct SpmmArgs {
  MatrixView w;
  DType x_dtype = DType::f32;
  int64_t m = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* bias = nullptr;  // [n] or null
  void* y = nullptr;
  int64_t y_stride = 0;
  Activation activation = Activation::none;
  const void* multiplier = nullptr;  // [m, n] or null; must not overlap y
  int64_t multiplier_stride = 0;
  // What the kernel's XForm made of x; spmm and spmm_with set it.
  const void* prepared = nullptr;
};

// Computes output rows [row_begin, row_end) of w for all m tokens. Bounds are multiples of
// row_step(), except row_end == rows.
using SpmmKernel = void (*)(const SpmmArgs&, int64_t row_begin, int64_t row_end);

// Columns of x that share a step where a form quantizes: step = largest |x| among them / 127.
inline constexpr int64_t kStepColumns = 256;

// x rewritten once for a call, before any row is computed, because every row reads it: transposed,
// quantized. All threads share the result.
struct SpmmXForm {
  int64_t (*bytes)(const SpmmArgs&);  // of the result, which starts on a cache line
  // Part `part` of `parts` of the work; parts touch disjoint bytes and none reads another's.
  void (*prepare)(const SpmmArgs&, void* prepared, int part, int parts);
  bool quantizes = false;  // x loses digits: to 8 bits, one step per kStepColumns columns
  // How threads share a product (spmm.cc says why). With `own` each thread makes all of the result
  // for itself. Where tokens_each is not 0, threads may share tokens, not rows, each with at least
  // so many; with `even` all get as many, a multiple of tokens_each, where there are at
  // most kRowsToShareTokens rows.
  // Only where a token's sums do not depend on which others there are.
  bool own = false;
  int64_t tokens_each = 0;
  bool even = false;
  int64_t lanes = 1;  // tokens come in so many: fewer take as long
};

// Rows beyond which even shares of tokens gain nothing.
inline constexpr int64_t kRowsToShareTokens = 2048;

// One line of kernels.def. Kernels are asked only where there are columns.
struct SpmmRow {
  const char* name;  // spmm_<format>_<w dtype>_<x dtype>_<isa>[_<x form>]
  Format format;
  DType w_dtype, x_dtype;
  IsaBits isa;              // all of these must be present
  int32_t tile_m;           // tokens that share one expansion of the weights
  int32_t tile_n;           // rows in flight
  int64_t from_m;           // fewest tokens for which the choice takes it; it can run any number
  const SpmmXForm* x_form;  // null: reads x as given
  SpmmKernel run;
};

// What the choice depends on.
struct SpmmDesc {
  Format format;
  DType w_dtype, x_dtype;
  int64_t m, n, k, nnz;
  int32_t block_rows = 1, block_cols = 1;
  int64_t group_size = 16;  // groupq
};

SpmmDesc describe(const SpmmArgs& args);

// Rows per unit of work: the kernel's tile, or the height of a block.
constexpr int64_t row_step(const SpmmRow& row, const MatrixView& w) {
  return w.format == Format::block ? w.block_rows : row.tile_n;
}

// All kernels, best first within a format and dtype.
std::span<const SpmmRow> spmm_kernels();

// Of the rows that fit, desc.m >= from_m included, the first unless a later one is expected to be
// clearly faster (cost.h), or the first is not known to the cost model and the later one is; null
// if none. Pure: the AVX-512 choice can be asked for on any host.
const SpmmRow* choose_spmm(const SpmmDesc& desc, IsaBits isa);

// Checks the arguments, chooses for this host and runs on the pool. Allocates nothing.
Status spmm(const SpmmArgs& args);

// The same with a given kernel, which this host must have: for benchmarks.
Status spmm_with(const SpmmRow& row, const SpmmArgs& args);

// The same in parts, for a caller that has threads of its own: check and choose, once; then each
// thread computes its rows, with a.prepared set where the kernel has a form of x.
Status find_spmm(const SpmmArgs& a, const SpmmRow** row);
struct SpmmRows {
  int64_t begin, end;
};
SpmmRows spmm_rows(const SpmmRow& row, const MatrixView& w, int thread, int threads);
void spmm_part(const SpmmRow& row, const SpmmArgs& a, SpmmRows rows);

// Double-accumulating reference, no dispatch, without activation: y (f64) [m, n].
Status spmm_reference(const SpmmArgs& args, double* y);

}  // namespace tamis
