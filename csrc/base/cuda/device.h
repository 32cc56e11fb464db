// What plans need to know of a device, and the memory that calls share; host side only.
#pragma once

#include <cstdint>

namespace tamis {

struct CudaDevice {
  int32_t index = 0;
  int32_t capability = 0;  // 90 for 9.0
  int32_t sms = 0;
  int32_t shared_per_sm = 0, shared_per_block = 0;  // bytes, the latter with the opt-in
};

inline constexpr int32_t kMaxCluster = 8;  // blocks of a cluster that every device takes (sm_90)

// Of blocks that run at once, those that do as clusters of more than two, which need room side by
// side: a seventh of the device is left.
constexpr int64_t cluster_room(int64_t blocks) {
  return blocks * 17 / 20;
}

// A workspace on a device, as all kernels that take one agree on it: tickets first, zero before the
// first call and after every call, then whatever a call puts there. So calls of all kernels on one
// stream may take turns with one; calls that can overlap need one each.
inline constexpr int64_t kWorkspaceTickets = 16384;
inline constexpr int64_t kWorkspaceTicketBytes = 4 * kWorkspaceTickets;

}  // namespace tamis
