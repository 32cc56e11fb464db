// One piece of memory for each thread, which grows and is kept.
#include "base/scratch.h"

#include <cstddef>
#include <memory>
#include <new>

namespace tamis {
namespace {

constexpr std::align_val_t kLine{64};

struct Free {
  void operator()(std::byte* p) const { ::operator delete(p, kLine); }
};

struct Scratch {
  std::unique_ptr<std::byte, Free> memory;
  int64_t bytes = 0;
};

thread_local Scratch mine;

}  // namespace

void* scratch(int64_t bytes) {
  if (bytes > mine.bytes || !mine.memory) {
    mine.memory.reset();
    mine.bytes = 0;
    const auto size = static_cast<size_t>(bytes > 0 ? bytes : 1);
    mine.memory.reset(static_cast<std::byte*>(::operator new(size, kLine, std::nothrow)));
    if (mine.memory) mine.bytes = bytes;
  }
  return mine.memory.get();
}

}  // namespace tamis
