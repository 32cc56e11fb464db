// sparse_mlp: cuts the neurons into tasks, runs them on the threads of this process and adds their
// sums in the order of the neurons.
#include "ops/sparse_mlp/sparse_mlp.h"

#include <algorithm>

#include "base/elements.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "ops/sparse_input/sparse_input.h"
#include "ops/sparse_mlp/kernels.h"

namespace tamis {
namespace {

constexpr SparseMlpRow kKernels[] = {
#define TAMIS_SPARSE_MLP(dtype, level) \
  {"sparse_mlp_" #dtype "_" #level, DType::dtype, isa::level, &sparse_mlp_##dtype##_##level},
#include "ops/sparse_mlp/kernels.def"
#undef TAMIS_SPARSE_MLP
};

// A task: few enough neurons that every thread gets some, enough that its sums, written and read
// once more, are little beside its weights. At most kMostTasks, whatever the number of threads.
constexpr int64_t kTaskNeurons = 128, kMostTasks = 64;

int64_t neurons_of_task(int64_t n) {
  const int64_t steps = (n + kTaskNeurons - 1) / kTaskNeurons;
  return (steps + kMostTasks - 1) / kMostTasks * kTaskNeurons;
}

Status missing(const char* what) {
  return error(Code::invalid_argument, "sparse_mlp: %s: got null, wanted an array", what);
}

Status check(const SparseMlpArgs& a) {
  if (a.dtype == DType::i8) {
    return error(Code::unsupported_dtype, "sparse_mlp: dtype: got i8, wanted f32, f16 or bf16");
  }
  if (a.m < 0 || a.k < 0 || a.n < 0 || a.d < 0 || a.n > INT32_MAX) {
    return error(Code::invalid_argument,
                 "sparse_mlp: m, k, n, d: got %lld, %lld, %lld and %lld, wanted 0 to 2^31 - 1",
                 static_cast<long long>(a.m), static_cast<long long>(a.k),
                 static_cast<long long>(a.n), static_cast<long long>(a.d));
  }
  if (a.m > 1 && (a.x_stride < a.k || a.y_stride < a.d)) {
    return error(Code::invalid_argument,
                 "sparse_mlp: x_stride, y_stride: got %lld and %lld, wanted at least %lld and %lld",
                 static_cast<long long>(a.x_stride), static_cast<long long>(a.y_stride),
                 static_cast<long long>(a.k), static_cast<long long>(a.d));
  }
  if (a.m == 0 || a.d == 0) return {};
  if (!a.y) return missing("y");
  if (a.n == 0) return {};
  if (!a.threshold) return missing("threshold");
  if (!a.down) return missing("down");
  if (a.k > 0 && !a.x) return missing("x");
  if (a.k > 0 && !a.gate) return missing("gate");
  if (a.k > 0 && !a.up) return missing("up");
  return {};
}

// Memory of a call: counts of the tasks, x as f32, and the tasks' sums.
struct Memory {
  int64_t* kept;
  float* x;
  float* sums;

  static int64_t bytes(const SparseMlpArgs& a, int64_t tasks) {
    return 8 * tasks + 4 * kPassTokens * (a.k + tasks * a.d);
  }
  Memory(const SparseMlpArgs& a, int64_t tasks, void* base)
      : kept(static_cast<int64_t*>(base)),
        x(reinterpret_cast<float*>(kept + tasks)),
        sums(x + kPassTokens * a.k) {}
};

// Tokens [first, first + tokens); returns how many activations counted.
int64_t run_pass(const SparseMlpRow& row, const SparseMlpArgs& a, int64_t first, int64_t tokens,
                 int64_t tasks, const Memory& memory) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < a.k; ++c) {
      memory.x[t * a.k + c] = load_element(a.dtype, a.x, (first + t) * a.x_stride + c);
    }
  }
  const int64_t each = neurons_of_task(a.n), width = tokens * a.d;
  const auto neurons = [&](int thread, int threads) {
    for (int64_t task = thread; task < tasks; task += threads) {
      row.run({.args = &a,
               .x = memory.x,
               .tokens = tokens,
               .begin = task * each,
               .end = std::min((task + 1) * each, a.n),
               .sum = memory.sums + task * width,
               .kept = memory.kept + task});
    }
  };
  const auto add = [&](int thread, int threads) {
    const int64_t begin = width * thread / threads, end = width * (thread + 1) / threads;
    float* sum = memory.sums;
    for (int64_t task = 1; task < tasks; ++task) {
      const float* part = memory.sums + task * width;
      for (int64_t c = begin; c < end; ++c) sum[c] += part[c];
    }
    for (int64_t c = begin; c < end; ++c) {
      store_element(a.dtype, tasks ? sum[c] : 0.0f, a.y, (first + c / a.d) * a.y_stride + c % a.d);
    }
  };
  const auto threads = static_cast<int>(std::min<int64_t>(num_threads(), tasks));
  if (threads > 1) {
    parallel(threads, neurons);
    parallel(threads, add);
  } else {
    neurons(0, 1);
    add(0, 1);
  }
  int64_t kept = 0;
  for (int64_t task = 0; task < tasks; ++task) kept += memory.kept[task];
  return kept;
}

}  // namespace

std::span<const SparseMlpRow> sparse_mlp_kernels() {
  return kKernels;
}

const SparseMlpRow* choose_sparse_mlp(DType dtype, IsaBits isa) {
  for (const SparseMlpRow& row : kKernels) {
    if (row.dtype == dtype && (row.isa & isa) == row.isa) return &row;
  }
  return nullptr;
}

Status sparse_mlp(const SparseMlpArgs& args) {
  const SparseMlpRow* row = choose_sparse_mlp(args.dtype, active_isa());
  if (!row) return check(args);  // i8, which it refuses
  return sparse_mlp_with(*row, args);
}

Status sparse_mlp_with(const SparseMlpRow& row, const SparseMlpArgs& a) {
  TAMIS_RETURN_IF_ERROR(check(a));
  if (a.kept) *a.kept = 0;
  if (a.m == 0 || a.d == 0) return {};
  const int64_t each = neurons_of_task(a.n);
  const int64_t tasks = a.n ? (a.n + each - 1) / each : 0;
  void* base = scratch(Memory::bytes(a, tasks));
  if (!base) return error(Code::out_of_memory, "sparse_mlp: no memory for sums");
  const Memory memory(a, tasks, base);
  for (int64_t first = 0; first < a.m; first += kPassTokens) {
    const int64_t tokens = std::min(kPassTokens, a.m - first);
    const int64_t kept = run_pass(row, a, first, tokens, tasks, memory);
    if (a.kept) *a.kept += kept;
  }
  return {};
}

}  // namespace tamis
