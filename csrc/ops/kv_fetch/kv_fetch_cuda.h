// kv_fetch on CUDA: the same maps and lists, bit for bit, over memory of the device; far keys and
// values may lie in host memory that the device reaches. Two launches, nothing waits for the host.
#pragma once

#include "base/cuda/device.h"
#include "base/status.h"
#include "ops/kv_fetch/kv_fetch.h"

namespace tamis {

inline constexpr int32_t kFetchThreads = 1024;
inline constexpr int32_t kFetchCopyThreads = 256;

Status kv_fetch_cuda(const KvFetchArgs& args, const CudaDevice& device, void* stream);

// As check_kv_fetch, and rows of whole 16 bytes. Lists lie on the device, so indices are not
// refused: the nearest unit is taken.
Status check_kv_fetch_cuda(const KvFetchArgs& args);

}  // namespace tamis
