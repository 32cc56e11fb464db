// How blocks that share a result find the one that adds it up: the last to take a ticket.
#pragma once

#include <cstdint>

#include "base/cuda/dev.h"

namespace tamis {

// Whether this block is the last of `count` to come here, with all its threads; all of them then
// see what all threads of the others wrote before. *ticket is zero before and after that. flag_at:
// four bytes of shared memory that nothing else uses. The atomic of one thread orders what all of
// its block wrote: a fence of each thread and one more behind the atomic take 0.1 to 0.5 us longer.
TAMIS_DEVICE bool arrives_last(uint32_t* ticket, uint32_t count, uint32_t flag_at) {
  dev::sync_block();
  if (dev::thread_index() == 0) {
    const bool last = dev::atomic_add_ordered(ticket, 1) + 1 == count;
    if (last) *ticket = 0;
    dev::store_shared<uint32_t>(flag_at, last);
  }
  dev::sync_block();
  return dev::load_shared<uint32_t>(flag_at) != 0;
}

}  // namespace tamis
