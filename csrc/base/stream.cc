// Plain reads of a buffer larger than the caches.
#include "base/stream.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "base/parallel.h"

namespace tamis {
namespace {

// Xor of words [begin, end); eight chains keep enough loads in flight and vectorize.
uint64_t read(const uint64_t* words, int64_t begin, int64_t end) {
  uint64_t chain[8] = {};
  for (int64_t i = begin; i + 8 <= end; i += 8) {
    for (int j = 0; j < 8; ++j) chain[j] ^= words[i + j];
  }
  uint64_t all = 0;
  for (const uint64_t c : chain) all ^= c;
  return all;
}

}  // namespace

double stream_read_bytes_per_second(const uint64_t* buffer, int64_t bytes, int threads) {
  constexpr int kPasses = 5;
  const int64_t lines = bytes / 64;
  std::atomic<uint64_t> sink{0};  // keeps the reads
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    parallel(threads, [&](int t, int n) {
      sink.fetch_xor(read(buffer, lines * t / n * 8, lines * (t + 1) / n * 8));
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(bytes) / std::max(seconds.count(), 1e-9));
  }
  return best;
}

}  // namespace tamis
