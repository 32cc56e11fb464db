// Launches of the t16 kernels. Each .cu file includes this once and names its rows.
#pragma once

#include "base/cuda/launch.h"
#include "base/with_constant.h"
#include "ops/spmm/t16.cuh"

namespace tamis {

template <PackedFormat kFormat, DType kType, bool kBulk>
Status launch_spmm_t16(const SpmmCudaArgs& a, const SpmmCudaPlan& plan, const CudaDevice& device,
                       void* stream) {
  const auto start = [&]<int kTiles>(std::integral_constant<int, kTiles>) {
    return launch_wide<&spmm_t16<T16Config<kFormat, kType, kTiles, kBulk>>>(
        "spmm", device, device.shared_per_block,
        {.grid = dim3(plan.blocks_n, plan.splits),
         .threads = kBlockThreads,
         .shared_bytes = static_cast<size_t>(plan.shared_bytes),
         .early = kBulk && a.w.settled,
         .stream = stream},
        spmm_t16_params(a, plan));
  };
  return with_constant<1, 2, 4, 8>(plan.token_tiles, start);
}

}  // namespace tamis
