// sparse_input: lists the inputs that count once, then every thread adds up their rows over its own
// columns.
#include "ops/sparse_input/sparse_input.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/elements.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "ops/sparse_input/kernels.h"

namespace tamis {
namespace {

constexpr SparseInputRow kKernels[] = {
#define TAMIS_SPARSE_INPUT(dtype, level) \
  {"sparse_input_" #dtype "_" #level, DType::dtype, isa::level, &sparse_input_##dtype##_##level},
#include "ops/sparse_input/kernels.def"
#undef TAMIS_SPARSE_INPUT
};

constexpr int64_t kColumnStep = 64;       // a thread's columns start on lines of w
constexpr int64_t kThreadWeights = 8192;  // fewer for a thread would not pay for waking it

Status missing(const char* what) {
  return error(Code::invalid_argument, "sparse_input: %s: got null, wanted an array", what);
}

Status check(const SparseInputArgs& a) {
  if (a.dtype == DType::i8) {
    return error(Code::unsupported_dtype, "sparse_input: dtype: got i8, wanted f32, f16 or bf16");
  }
  if (a.m < 0 || a.n < 0 || a.k < 0 || a.k > INT32_MAX) {
    return error(Code::invalid_argument,
                 "sparse_input: m, n, k: got %lld, %lld and %lld, wanted 0 to 2^31 - 1",
                 static_cast<long long>(a.m), static_cast<long long>(a.n),
                 static_cast<long long>(a.k));
  }
  if (a.m > 1 && (a.x_stride < a.k || a.y_stride < a.n)) {
    return error(
        Code::invalid_argument,
        "sparse_input: x_stride, y_stride: got %lld and %lld, wanted at least %lld and %lld",
        static_cast<long long>(a.x_stride), static_cast<long long>(a.y_stride),
        static_cast<long long>(a.k), static_cast<long long>(a.n));
  }
  if (a.m == 0 || a.n == 0) return {};
  if (!a.y) return missing("y");
  if (a.k > 0 && !a.x) return missing("x");
  if (a.k > 0 && !a.w) return missing("w");
  if (a.k > 0 && !a.threshold) return missing("threshold");
  return {};
}

// Memory of a call: the list and one row of sums per token.
struct Memory {
  int32_t* ids;
  float* factors;
  float* sums;

  static int64_t bytes(const SparseInputArgs& a) {
    return 4 * (a.k * (1 + kPassTokens) + a.n * kPassTokens);
  }
  Memory(const SparseInputArgs& a, void* base)
      : ids(static_cast<int32_t*>(base)),
        factors(reinterpret_cast<float*>(ids + a.k)),
        sums(factors + a.k * kPassTokens) {}
};

// Lists the inputs that some of tokens [first, first + tokens) need; returns how many pairs count.
int64_t list_inputs(const SparseInputArgs& a, int64_t first, int64_t tokens, const Memory& memory,
                    WeightedRows* rows) {
  int64_t count = 0, kept = 0;
  for (int64_t k = 0; k < a.k; ++k) {
    float* factor = memory.factors + count * tokens;
    int64_t here = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      const float x = load_element(a.dtype, a.x, (first + t) * a.x_stride + k);
      const bool counts = !(std::fabs(x) < a.threshold[k]);
      factor[t] = counts ? x : 0.0f;
      here += counts;
    }
    memory.ids[count] = static_cast<int32_t>(k);
    count += here > 0;
    kept += here;
  }
  *rows = {.count = count, .ids = memory.ids, .factors = memory.factors};
  return kept;
}

void run_pass(const SparseInputRow& row, const SparseInputArgs& a, int64_t first, int64_t tokens,
              const WeightedRows& rows, float* sums) {
  const int64_t steps = (a.n + kColumnStep - 1) / kColumnStep;
  const int64_t pays = std::max<int64_t>(1, rows.count * a.n / kThreadWeights);
  const auto threads = static_cast<int>(std::min({int64_t{num_threads()}, steps, pays}));
  const auto part = [&](int thread, int of) {
    const int64_t begin = steps * thread / of * kColumnStep;
    const int64_t end = std::min(steps * (thread + 1) / of * kColumnStep, a.n);
    for (int64_t t = 0; t < tokens; ++t) {
      float* sum = sums + t * a.n;
      for (int64_t c = begin; c < end; ++c) {
        sum[c] = a.bias ? load_element(a.dtype, a.bias, c) : 0.0f;
      }
    }
    if (rows.count > 0) {
      row.run({.rows = rows,
               .tokens = tokens,
               .w = a.w,
               .stride = a.n,
               .sum = sums,
               .sum_stride = a.n,
               .begin = begin,
               .end = end});
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t y = (first + t) * a.y_stride;
      for (int64_t c = begin; c < end; ++c) store_element(a.dtype, sums[t * a.n + c], a.y, y + c);
    }
  };
  if (threads > 1) {
    parallel(threads, part);
  } else {
    part(0, 1);
  }
}

}  // namespace

std::span<const SparseInputRow> sparse_input_kernels() {
  return kKernels;
}

const SparseInputRow* choose_sparse_input(DType dtype, IsaBits isa) {
  for (const SparseInputRow& row : kKernels) {
    if (row.dtype == dtype && (row.isa & isa) == row.isa) return &row;
  }
  return nullptr;
}

Status sparse_input(const SparseInputArgs& args) {
  const SparseInputRow* row = choose_sparse_input(args.dtype, active_isa());
  if (!row) return check(args);  // i8, which it refuses
  return sparse_input_with(*row, args);
}

Status sparse_input_with(const SparseInputRow& row, const SparseInputArgs& a) {
  TAMIS_RETURN_IF_ERROR(check(a));
  if (a.kept) *a.kept = 0;
  if (a.m == 0 || a.n == 0) return {};
  void* base = scratch(Memory::bytes(a));
  if (!base) return error(Code::out_of_memory, "sparse_input: no memory for sums");
  const Memory memory(a, base);
  for (int64_t first = 0; first < a.m; first += kPassTokens) {
    const int64_t tokens = std::min(kPassTokens, a.m - first);
    WeightedRows rows;
    const int64_t kept = list_inputs(a, first, tokens, memory, &rows);
    if (a.kept) *a.kept += kept;
    run_pass(row, a, first, tokens, rows, memory.sums);
  }
  return {};
}

}  // namespace tamis
