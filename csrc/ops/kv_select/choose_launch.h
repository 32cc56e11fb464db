// What launchers of kernels that choose by clusters share.
#pragma once

#include <array>
#include <atomic>

#include "base/cuda/launch.h"
#include "ops/kv_select/choose_params.h"

namespace tamis {

inline CudaGrid choose_grid(const ChooseParams& p, int32_t shared_bytes, void* stream) {
  return {
      .grid = dim3(static_cast<uint32_t>(p.estimate.blocks), static_cast<uint32_t>(p.select.heads)),
      .threads = kChooseThreads,
      .shared_bytes = static_cast<size_t>(shared_bytes),
      .early = true,
      .stream = stream,
      .cluster = static_cast<uint32_t>(p.estimate.blocks)};
}

// Registers leave an SM room for one block, whatever its shared memory.
template <auto* kKernel>
Status find_choose_fit(const char* function, const CudaDevice& device, ChooseFit* fit) {
  static std::array<std::atomic<int32_t>, 64 * kChooseBlocks> known{};
  for (size_t i = 0; i < fit->size(); ++i) {
    std::atomic<int32_t>& at_once =
        known[static_cast<size_t>(device.index % 64) * kChooseBlocks + i];
    if (at_once.load(std::memory_order_relaxed) == 0) {
      cudaLaunchAttribute cluster{};
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim = {static_cast<uint32_t>(i + 1), 1, 1};
      const cudaLaunchConfig_t config{.gridDim = dim3(static_cast<uint32_t>(i + 1)),
                                      .blockDim = dim3(kChooseThreads),
                                      .attrs = &cluster,
                                      .numAttrs = 1};
      int found = 0;
      TAMIS_RETURN_IF_ERROR(
          cuda_status(function, cudaOccupancyMaxActiveClusters(&found, kKernel, &config)));
      at_once.store(found, std::memory_order_relaxed);
    }
    (*fit)[i] = at_once.load(std::memory_order_relaxed);
  }
  return {};
}

}  // namespace tamis
