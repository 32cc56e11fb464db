// Launches of the kernels for warpgroups, which come in layouts. Each .cu file includes this once.
#pragma once

#include "base/cuda/launch.h"
#include "ops/spmm/spmm_cuda.h"

namespace tamis {

// Launches a layout's kernel in as many blocks, every `cluster` neighbours a cluster.
template <class Config, auto* kKernel, class Params>
Status launch_blocks(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                     void* stream, int32_t blocks, int32_t cluster, const Params& params) {
  return launch_wide<kKernel>("spmm", device, Config::kLayout.shared_bytes(),
                              {.grid = dim3(static_cast<uint32_t>(blocks)),
                               .threads = Config::kThreads,
                               .shared_bytes = static_cast<size_t>(plan.shared_bytes),
                               .early = a.w.settled,
                               .stream = stream,
                               .cluster = static_cast<uint32_t>(cluster)},
                              params);
}

}  // namespace tamis
