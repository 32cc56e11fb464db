// The clock of timings: of one thread its own, so that what others do on its core meanwhile does
// not count; of several the wall's.
#pragma once

#include <ctime>

namespace tamis {

// ns since some moment, for work on `threads` threads, the calling one among them.
inline double now_ns(int threads) {
  timespec t{};
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return 1e9 * static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec);
}

}  // namespace tamis
