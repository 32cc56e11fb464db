// Threads of a call: a body that each of them runs once, told which one it is of how many. What it
// shares out, and how, is the body's.
#pragma once

#include <cstdint>

namespace tamis {

// Runs body(context, thread, threads) once per thread; a nested call runs on the caller alone.
void parallel_run(int threads, void (*body)(const void* context, int thread, int threads),
                  const void* context);

// Waits, inside a body that parallel_run calls, until all of its threads are here; `threads` is
// what the body was given.
void wait_for_all(int threads);

// Threads a call may use: set_num_threads, else TAMIS_NUM_THREADS, else what the runtime shares
// with torch (torch.set_num_threads is obeyed).
int num_threads();
void set_num_threads(int n);  // n <= 0: back to the default

// Calls fn(thread, threads) on `threads` threads without allocating.
template <class Fn>
void parallel(int threads, const Fn& fn) {
  parallel_run(
      threads, [](const void* f, int t, int n) { (*static_cast<const Fn*>(f))(t, n); }, &fn);
}

}  // namespace tamis
