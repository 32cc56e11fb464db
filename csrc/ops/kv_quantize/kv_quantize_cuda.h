// kv_quantize on CUDA: the same records, bit for bit. Host side only.
#pragma once

#include "base/cuda/device.h"
#include "base/status.h"
#include "ops/kv_quantize/kv_quantize.h"

namespace tamis {

inline constexpr int32_t kQuantizeThreads = 128;

// Shared memory of a block: the page in f32, then codes of a byte.
constexpr int64_t quantize_shared(const KvPageLayout& a) {
  return 5 * int64_t{a.tokens} * (a.head_dim + 1);
}

// Checks and launches one block a record on a stream (cudaStream_t); everything that args point to
// lies on the device. Does not wait and allocates nothing.
Status kv_quantize_cuda(const KvQuantizeArgs& args, const CudaDevice& device, void* stream);

}  // namespace tamis
