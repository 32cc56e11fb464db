// What every launcher does: results of the runtime as a Status, shared memory beyond 48 KB,
// launches that may begin while the kernel before them ends.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "base/cuda/device.h"
#include "base/status.h"

namespace tamis {

inline Status cuda_status(const char* function, cudaError_t result) {
  if (result == cudaSuccess) return {};
  return error(Code::no_kernel, "%s: CUDA: got '%s', wanted success", function,
               cudaGetErrorString(result));
}

// Zeros in all of a matrix of 16-bit elements.
inline Status fill_zeros(const char* function, void* out, int64_t rows, int64_t cols,
                         int64_t stride, void* stream) {
  return cuda_status(
      function,
      cudaMemset2DAsync(out, static_cast<size_t>(2 * stride), 0, static_cast<size_t>(2 * cols),
                        static_cast<size_t>(rows), static_cast<cudaStream_t>(stream)));
}

struct CudaGrid {
  dim3 grid;
  uint32_t threads;
  size_t shared_bytes;
  bool early;  // may begin before the kernel before it ends; it then waits itself (sm_90)
  void* stream;
  uint32_t cluster = 1;  // neighbouring blocks that reach each other's shared memory (sm_90)
};

template <class Params>
Status launch(const char* function, const CudaGrid& g, void (*kernel)(Params),
              const Params& params) {
  cudaLaunchAttribute attributes[2] = {};
  uint32_t count = 0;
  if (g.early) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (g.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {g.cluster, 1, 1};
  }
  const cudaLaunchConfig_t config{.gridDim = g.grid,
                                  .blockDim = dim3(g.threads),
                                  .dynamicSmemBytes = g.shared_bytes,
                                  .stream = static_cast<cudaStream_t>(g.stream),
                                  .attrs = attributes,
                                  .numAttrs = count};
  return cuda_status(function, cudaLaunchKernelEx(&config, kernel, params));
}

inline constexpr cudaFuncAttribute kMostShared = cudaFuncAttributeMaxDynamicSharedMemorySize;

// Sets an attribute of a kernel, once per device.
template <auto* kKernel, cudaFuncAttribute kAttribute>
Status set_once(const char* function, const CudaDevice& device, int32_t value) {
  static std::atomic<uint64_t> done{0};
  const uint64_t bit = uint64_t{1} << (device.index % 64);
  if (done.load(std::memory_order_relaxed) & bit) return {};
  TAMIS_RETURN_IF_ERROR(cuda_status(function, cudaFuncSetAttribute(kKernel, kAttribute, value)));
  done.fetch_or(bit, std::memory_order_relaxed);
  return {};
}

// The same of a kernel whose blocks may ask for up to `most` bytes of shared memory.
template <auto* kKernel, class Params>
Status launch_wide(const char* function, const CudaDevice& device, int32_t most, const CudaGrid& g,
                   const Params& params) {
  TAMIS_RETURN_IF_ERROR((set_once<kKernel, kMostShared>(function, device, most)));
  return launch(function, g, kKernel, params);
}

}  // namespace tamis
