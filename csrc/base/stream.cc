// Plain reads of a buffer larger than the caches.
#include "base/stream.h"

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/clock.h"
#include "base/parallel.h"

namespace tamis {
namespace {

// Xor of words [begin, end). Four streams a quarter apart keep several pages and prefetchers busy:
// one stream alone reads a fifth less on Zen 4 (20 against 25 GB/s), so it would be no ceiling.
// They are an odd number of pages apart: 128 MB apart, in a buffer of 512, they read 12 GB/s,
// not 28.
uint64_t read(const uint64_t* words, int64_t begin, int64_t end) {
  constexpr int64_t kStreams = 4, kLine = 8, kPage = 512;
  int64_t length = (end - begin) / (kStreams * kLine) * kLine;
  if (length > 64 * kPage) length = ((length / kPage - 1) | 1) * kPage;
  const uint64_t* from = words + begin;
  uint64_t chain[kStreams][kLine] = {};
  for (int64_t i = 0; i < length; i += kLine) {
    for (int64_t s = 0; s < kStreams; ++s) {
      for (int64_t j = 0; j < kLine; ++j) chain[s][j] ^= from[s * length + i + j];
    }
  }
  uint64_t all = 0;
  for (const auto& stream : chain) {
    for (const uint64_t c : stream) all ^= c;
  }
  for (int64_t i = kStreams * length; i < end - begin; ++i) all ^= from[i];
  return all;
}

}  // namespace

double stream_read_bytes_per_second(const uint64_t* buffer, int64_t bytes, int threads,
                                    int passes) {
  const int64_t lines = bytes / 64;
  std::atomic<uint64_t> sink{0};  // keeps the reads
  double best = 0;
  for (int pass = 0; pass < passes; ++pass) {
    const double start = now_ns(threads);
    parallel(threads, [&](int t, int n) {
      sink.fetch_xor(read(buffer, lines * t / n * 8, lines * (t + 1) / n * 8));
    });
    const double seconds = (now_ns(threads) - start) / 1e9;
    best = std::max(best, static_cast<double>(bytes) / std::max(seconds, 1e-9));
  }
  return best;
}

}  // namespace tamis
