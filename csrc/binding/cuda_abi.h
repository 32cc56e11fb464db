// What tamis_cuda, the library with the GPU code, gives to the extension: one C symbol that returns
// a table of functions. Both are built from one source; kCudaAbi catches files that were mixed.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "ops/spmm/spmm_cuda.h"

namespace tamis {

inline constexpr int32_t kCudaAbi = 2;  // raise with any change to the table or a struct in it

struct CudaLibrary {
  int32_t abi;
  // Number of devices; a Status that says why there are none, such as a missing driver.
  Status (*count)(int32_t* devices);
  // Facts of a device, and its name into text[size].
  Status (*describe)(int32_t device, CudaDevice* facts, char* text, int64_t size);
  std::span<const SpmmCudaRow> (*spmm_kernels)();
  const SpmmCudaRow* (*choose_spmm)(DType dtype, int32_t capability);
  Status (*spmm)(const SpmmCudaArgs&, const SpmmT16Plan&, const CudaDevice&, void* stream);
  Status (*expand_t16)(const T16View&, void* out, int64_t out_stride, void* stream);
};

inline constexpr const char* kCudaSymbol = "tamis_cuda_library";

}  // namespace tamis
