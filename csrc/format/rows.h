// Work shared by the formats: rows over threads, and the first failure in row order.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/parallel.h"

namespace tamis {

// Extents are limited so that no product of two sizes, nor of one with a word count, overflows.
inline constexpr int64_t kMaxExtent = INT32_MAX;

// Calls fn(begin, end) over contiguous parts of [0, rows) in parallel.
template <class Fn>
void for_rows(int64_t rows, int64_t cols, const Fn& fn) {
  constexpr int64_t kElementsPerThread = 1 << 16;  // less work costs more to wake than to do
  const int64_t threads = std::min<int64_t>(
      {num_threads(), rows, std::max<int64_t>(1, rows * cols / kElementsPerThread)});
  if (threads <= 1) {
    fn(int64_t{0}, rows);
  } else {
    parallel(static_cast<int>(threads),
             [&](int t, int n) { fn(rows * t / n, rows * (t + 1) / n); });
  }
}

// The smallest position any thread reports; the message is made after the loop.
class FirstFailure {
 public:
  void report(int64_t position) {
    int64_t seen = position_.load(std::memory_order_relaxed);
    while (position < seen &&
           !position_.compare_exchange_weak(seen, position, std::memory_order_relaxed)) {
    }
  }
  bool any() const { return position() != INT64_MAX; }
  int64_t position() const { return position_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> position_{INT64_MAX};
};

}  // namespace tamis
