// parallel_run on OpenMP: the libgomp.so.1 that torch uses too, so one set of workers serves both.
#include "base/parallel.h"

#include <omp.h>

#include <atomic>

#include "base/isa.h"

namespace tamis {
namespace {
std::atomic<int> chosen_threads{0};
}  // namespace

void set_num_threads(int n) {
  chosen_threads.store(n > 0 ? n : 0, std::memory_order_relaxed);
}

int num_threads() {
  if (const int n = chosen_threads.load(std::memory_order_relaxed)) return n;
  if (const int n = threads_from_environment()) return n;
  return omp_get_max_threads();
}

void parallel_run(int threads, void (*body)(const void* context, int thread, int threads),
                  const void* context) {
  if (threads <= 1 || omp_in_parallel()) return body(context, 0, 1);
#pragma omp parallel num_threads(threads)
  // The runtime may grant fewer threads than asked for; the body splits by what it is told.
  body(context, omp_get_thread_num(), omp_get_num_threads());
}

void wait_for_all(int threads) {
  if (threads <= 1) return;  // alone, maybe in somebody else's region
#pragma omp barrier
}

}  // namespace tamis
