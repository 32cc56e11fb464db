// Launches of the t16 kernels. Each .cu file includes this once and names its rows.
#pragma once

#include <atomic>

#include "base/cuda/launch.h"
#include "ops/spmm/t16.cuh"

namespace tamis {

template <class Config>
Status launch_config(const SpmmCudaArgs& a, const SpmmT16Plan& plan, const CudaDevice& device,
                     void* stream) {
  static std::atomic<uint64_t> allowed{0};
  TAMIS_RETURN_IF_ERROR(allow_shared_memory("spmm", &spmm_t16<Config>, allowed, device.index,
                                            device.shared_per_block));
  return launch("spmm",
                {.grid = dim3(plan.blocks_n, plan.splits),
                 .threads = kBlockThreads,
                 .shared_bytes = static_cast<size_t>(plan.shared_bytes),
                 .early = Config::kBulk && a.w.settled,
                 .stream = stream},
                &spmm_t16<Config>, spmm_t16_params(a, plan));
}

template <PackedFormat kFormat, DType kType, bool kBulk>
Status launch_spmm_t16(const SpmmCudaArgs& a, const SpmmT16Plan& plan, const CudaDevice& device,
                       void* stream) {
  switch (plan.token_tiles) {
    case 1:
      return launch_config<T16Config<kFormat, kType, 1, kBulk>>(a, plan, device, stream);
    case 2:
      return launch_config<T16Config<kFormat, kType, 2, kBulk>>(a, plan, device, stream);
    case 4:
      return launch_config<T16Config<kFormat, kType, 4, kBulk>>(a, plan, device, stream);
    default:
      return launch_config<T16Config<kFormat, kType, 8, kBulk>>(a, plan, device, stream);
  }
}

}  // namespace tamis
