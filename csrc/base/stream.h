// How fast this machine reads memory: the limit every weight-bound kernel is measured against.
#pragma once

#include <cstdint>

namespace tamis {

// Best of `passes` passes of `threads` threads over buffer[bytes] (multiple of 64, aligned), in
// bytes per second.
double stream_read_bytes_per_second(const uint64_t* buffer, int64_t bytes, int threads,
                                    int passes = 5);

}  // namespace tamis
