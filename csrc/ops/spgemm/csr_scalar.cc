// Rows of spgemm on any processor. Sums lie densely, [n] f32 a thread; which columns have one is a
// bitmap with a second bitmap over its words, so a row's columns come out in order at a cost of its
// own length and of n / 4096, without sorting or hashing.
// After: Gustavson 1978.
#include <algorithm>
#include <bit>
#include <cstdint>

#include "ops/spgemm/kernels.h"

namespace tamis {
namespace {

// A thread's memory: sums [n], bits [words], words of bits that are not zero [summary].
struct Accumulator {
  float* sums;
  uint64_t *bits, *summary;
  int64_t low = INT64_MAX, high = -1;  // of summary, touched

  static int64_t words(int64_t n) { return ceil_div(n, 64); }
  static int64_t bytes(int64_t n) {
    return 8 * (words(n) + words(words(n))) + ceil_div(4 * n, 8) * 8;
  }
  Accumulator(int64_t n, void* memory)
      : sums(reinterpret_cast<float*>(static_cast<uint64_t*>(memory) + words(n) + words(words(n)))),
        bits(static_cast<uint64_t*>(memory)),
        summary(bits + words(n)) {}

  // Before the columns of a row of b, which ascend.
  void reach(int32_t first, int32_t last) {
    low = std::min<int64_t>(low, first / 4096);
    high = std::max<int64_t>(high, last / 4096);
  }
  void mark(int32_t column) {
    const auto at = static_cast<uint32_t>(column);
    bits[at / 64] |= uint64_t{1} << (at % 64);
    summary[at / 4096] |= uint64_t{1} << (at / 64 % 64);
  }
  // Calls fn(word, its bits) for every word that has some, in order, and forgets them.
  template <class Fn>
  void take(const Fn& fn) {
    for (int64_t over = low; over <= high; ++over) {
      for (uint64_t left = summary[over]; left != 0; left &= left - 1) {
        const int64_t word = 64 * over + std::countr_zero(left);
        fn(word, bits[word]);
        bits[word] = 0;
      }
      summary[over] = 0;
    }
    low = INT64_MAX;
    high = -1;
  }
};

}  // namespace

int64_t spgemm_memory_scalar(const SpgemmArgs& a) {
  return Accumulator::bytes(a.b.cols);
}

void spgemm_count_scalar(const SpgemmArgs& a, int64_t begin, int64_t end, void* memory,
                         int64_t* counts) {
  Accumulator row(a.b.cols, memory);
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t e = a.a.row_offsets[i]; e < a.a.row_offsets[i + 1]; ++e) {
      const int64_t p = a.a.col_indices[e];
      const int64_t first = a.b.row_offsets[p], last = a.b.row_offsets[p + 1];
      if (first == last) continue;
      row.reach(a.b.col_indices[first], a.b.col_indices[last - 1]);
      for (int64_t f = first; f < last; ++f) row.mark(a.b.col_indices[f]);
    }
    int64_t count = 0;
    row.take([&](int64_t, uint64_t bits) { count += std::popcount(bits); });
    counts[i] = count;
  }
}

void spgemm_fill_scalar(const SpgemmArgs& a, int64_t begin, int64_t end, void* memory,
                        const int64_t* row_offsets, int32_t* col_indices, float* values) {
  Accumulator row(a.b.cols, memory);
  const auto* w = static_cast<const float*>(a.a.values);
  const auto* x = static_cast<const float*>(a.b.values);
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t e = a.a.row_offsets[i]; e < a.a.row_offsets[i + 1]; ++e) {
      const int64_t p = a.a.col_indices[e];
      const int64_t first = a.b.row_offsets[p], last = a.b.row_offsets[p + 1];
      if (first == last) continue;
      row.reach(a.b.col_indices[first], a.b.col_indices[last - 1]);
      for (int64_t f = first; f < last; ++f) {
        const int32_t column = a.b.col_indices[f];
        row.mark(column);
        row.sums[column] += w[e] * x[f];
      }
    }
    int64_t at = row_offsets[i];
    row.take([&](int64_t word, uint64_t bits) {
      for (; bits != 0; bits &= bits - 1, ++at) {
        const int64_t column = 64 * word + std::countr_zero(bits);
        col_indices[at] = static_cast<int32_t>(column);
        values[at] = row.sums[column];
        row.sums[column] = 0;
      }
    });
  }
}

}  // namespace tamis
