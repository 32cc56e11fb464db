// sparse_input on CUDA: the same formula over memory of a device, one launch for up to 8 tokens.
// Host side only; nothing here needs the CUDA toolkit.
#pragma once

#include <cstdint>
#include <span>

#include "base/cuda/device.h"
#include "base/status.h"
#include "ops/sparse_input/sparse_input.h"

namespace tamis {

// One line of kernels_cuda.def.
struct SparseInputCudaRow {
  const char* name;  // sparse_input_<dtype>_sm80up
  DType dtype;
};

std::span<const SparseInputCudaRow> sparse_input_cuda_kernels();

// Bytes of workspace for a call; pure. Fails as the call would: a dtype without kernel, n no
// multiple of 8, w not on a multiple of 16.
Status sparse_input_workspace(const SparseInputArgs& args, const CudaDevice& device,
                              int64_t* bytes);

// Checks and launches; everything that args points to lies on the device. Does not wait, allocates
// nothing, does not fill args.kept. workspace: as base/cuda/device.h says.
Status sparse_input_cuda(const SparseInputArgs& args, void* workspace, int64_t workspace_bytes,
                         const CudaDevice& device, void* stream);

}  // namespace tamis
