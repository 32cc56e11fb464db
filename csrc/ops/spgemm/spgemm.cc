// spgemm on the threads of this process: rows are shared out by the products that they take.
#include "ops/spgemm/spgemm.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/parallel.h"
#include "base/scratch.h"
#include "ops/spgemm/kernels.h"

namespace tamis {
namespace {

constexpr SpgemmRow kKernels[] = {
#define TAMIS_SPGEMM(level)                                                             \
  {"spgemm_csr_f32_" #level, isa::level, &spgemm_memory_##level, &spgemm_count_##level, \
   &spgemm_fill_##level},
#include "ops/spgemm/kernels.def"
#undef TAMIS_SPGEMM
};

constexpr int64_t kThreadWork = 1 << 16;  // products; fewer would not pay for waking a thread
constexpr int64_t kChunkRows = 64;        // whose work is looked at as one

int64_t products_of(const SpgemmArgs& a, int64_t row) {
  int64_t products = 0;
  for (int64_t e = a.a.row_offsets[row]; e < a.a.row_offsets[row + 1]; ++e) {
    const int64_t p = a.a.col_indices[e];
    products += a.b.row_offsets[p + 1] - a.b.row_offsets[p];
  }
  return products;
}

// Calls fn(begin, end, memory) for chunks of rows, each thread with memory of its own that is zero.
// Threads take the next chunk when they are done, as rows may differ by any factor.
template <class Fn>
Status over_rows(const SpgemmArgs& a, const SpgemmRow& row, const Fn& fn) {
  int64_t products = 0;
  for (int64_t i = 0; i < a.a.rows && products < kThreadWork * num_threads(); ++i) {
    products += products_of(a, i);
  }
  const int64_t chunks = ceil_div(a.a.rows, kChunkRows);
  const auto threads = static_cast<int>(
      std::max<int64_t>(1, std::min<int64_t>({num_threads(), products / kThreadWork, chunks})));
  const int64_t bytes = row.memory(a);
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const auto part = [&](int, int) {
    void* memory = scratch(bytes);
    if (!memory) {
      failed = true;
      return;
    }
    std::memset(memory, 0, static_cast<size_t>(bytes));
    for (int64_t c = next++; c < chunks; c = next++) {
      fn(c * kChunkRows, std::min((c + 1) * kChunkRows, a.a.rows), memory);
    }
  };
  if (threads > 1) {
    parallel(threads, part);
  } else {
    part(0, 1);
  }
  return failed ? error(Code::out_of_memory, "spgemm: no memory for a row of sums") : Status{};
}

Status missing() {
  return error(Code::invalid_argument, "spgemm: arrays: got null, wanted memory");
}

}  // namespace

std::span<const SpgemmRow> spgemm_kernels() {
  return kKernels;
}

Status spgemm_count(const SpgemmArgs& a, int64_t* row_offsets) {
  TAMIS_RETURN_IF_ERROR(check_spgemm(a));
  if (!row_offsets) return missing();
  const SpgemmRow& row = kKernels[0];
  row_offsets[0] = 0;
  TAMIS_RETURN_IF_ERROR(over_rows(a, row, [&](int64_t begin, int64_t end, void* memory) {
    row.count(a, begin, end, memory, row_offsets + 1);
  }));
  for (int64_t i = 0; i < a.a.rows; ++i) row_offsets[i + 1] += row_offsets[i];
  return {};
}

Status spgemm_fill(const SpgemmArgs& a, const int64_t* row_offsets, int32_t* col_indices,
                   float* values) {
  TAMIS_RETURN_IF_ERROR(check_spgemm(a));
  if (!row_offsets || (row_offsets[a.a.rows] > 0 && (!col_indices || !values))) return missing();
  const SpgemmRow& row = kKernels[0];
  return over_rows(a, row, [&](int64_t begin, int64_t end, void* memory) {
    row.fill(a, begin, end, memory, row_offsets, col_indices, values);
  });
}

}  // namespace tamis
