// Memory that a call needs only while it runs.
#pragma once

#include <cstdint>

namespace tamis {

// At least `bytes` bytes on a cache line, the calling thread's own until it asks again; contents
// are what they were left as. Null if there is no memory. Grows and is kept, so that a repeated
// call allocates nothing; freed with the thread.
void* scratch(int64_t bytes);

}  // namespace tamis
