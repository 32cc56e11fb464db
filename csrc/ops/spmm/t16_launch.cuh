// Launches of the t16 kernels. Each .cu file includes this once and names its rows.
#pragma once

#include <cuda_runtime.h>

#include <atomic>

#include "ops/spmm/t16.cuh"

namespace tamis {

inline Status cuda_status(const char* function, cudaError_t result) {
  if (result == cudaSuccess) return {};
  return error(Code::no_kernel, "%s: CUDA: got '%s', wanted success", function,
               cudaGetErrorString(result));
}

// Lets a kernel use all the shared memory of a block; once per kernel and device.
template <class Kernel>
Status allow_shared_memory(Kernel* kernel, std::atomic<uint64_t>& allowed,
                           const CudaDevice& device) {
  const uint64_t bit = uint64_t{1} << (device.index % 64);
  if (allowed.load(std::memory_order_relaxed) & bit) return {};
  TAMIS_RETURN_IF_ERROR(
      cuda_status("spmm", cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               device.shared_per_block)));
  allowed.fetch_or(bit, std::memory_order_relaxed);
  return {};
}

template <class Config>
Status launch_config(const SpmmCudaArgs& a, const SpmmT16Plan& plan, const CudaDevice& device,
                     void* stream) {
  static std::atomic<uint64_t> allowed{0};
  TAMIS_RETURN_IF_ERROR(allow_shared_memory(&spmm_t16<Config>, allowed, device));
  cudaLaunchAttribute early{.id = cudaLaunchAttributeProgrammaticStreamSerialization};
  early.val.programmaticStreamSerializationAllowed = 1;
  const cudaLaunchConfig_t config{
      .gridDim = dim3(plan.blocks_n, plan.splits),
      .blockDim = dim3(kBlockThreads),
      .dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes),
      .stream = static_cast<cudaStream_t>(stream),
      .attrs = &early,
      .numAttrs = Config::kBulk && a.w.settled ? 1u : 0u,
  };
  return cuda_status("spmm",
                     cudaLaunchKernelEx(&config, &spmm_t16<Config>, spmm_t16_params(a, plan)));
}

template <DType kType, bool kBulk>
Status launch_spmm_t16(const SpmmCudaArgs& a, const SpmmT16Plan& plan, const CudaDevice& device,
                       void* stream) {
  switch (plan.token_tiles) {
    case 1:
      return launch_config<T16Config<kType, 1, kBulk>>(a, plan, device, stream);
    case 2:
      return launch_config<T16Config<kType, 2, kBulk>>(a, plan, device, stream);
    case 4:
      return launch_config<T16Config<kType, 4, kBulk>>(a, plan, device, stream);
    default:
      return launch_config<T16Config<kType, 8, kBulk>>(a, plan, device, stream);
  }
}

}  // namespace tamis
