// Fiber: one stack that can be left in the middle and entered again.
#pragma once

#include <cstddef>
#include <memory>

#if defined(__x86_64__) && !defined(TAMIS_SIM_UCONTEXT)
#define TAMIS_SIM_SWITCH 1
#else
#define TAMIS_SIM_SWITCH 0
#include <ucontext.h>
#endif

namespace tamis::sim {

// Runs `entry`, which never returns: it leaves for good by a last leave().
class Fiber {
 public:
  // Makes the next enter() start `entry` from its beginning.
  void reset(void (*entry)());
  // From outside: runs the fiber until it leaves.
  void enter();
  // From inside: back to where enter() was called.
  void leave();

 private:
  static constexpr size_t kStackBytes = 128 << 10;
  std::unique_ptr<char[]> stack_;
#if TAMIS_SIM_SWITCH
  void *inside_ = nullptr, *outside_ = nullptr;
#else
  ucontext_t inside_, outside_;
#endif
};

}  // namespace tamis::sim
