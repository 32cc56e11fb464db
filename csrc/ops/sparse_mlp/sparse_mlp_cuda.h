// sparse_mlp on CUDA: the same formula over memory of a device, two launches for one token, three
// for up to 8. Host side only; nothing here needs the CUDA toolkit.
#pragma once

#include <cstdint>
#include <span>

#include "base/cuda/device.h"
#include "base/status.h"
#include "ops/sparse_mlp/sparse_mlp.h"

namespace tamis {

// One line of kernels_cuda.def.
struct SparseMlpCudaRow {
  const char* name;  // sparse_mlp_<dtype>_sm80up
  DType dtype;
};

std::span<const SparseMlpCudaRow> sparse_mlp_cuda_kernels();

// Bytes of workspace for a call; pure. Fails as the call would: a dtype without kernel, k or d no
// multiple of 8, weights not on a multiple of 16, one token larger than shared memory.
Status sparse_mlp_workspace(const SparseMlpArgs& args, const CudaDevice& device, int64_t* bytes);

// Checks and launches; everything that args points to lies on the device. Does not wait, allocates
// nothing, does not fill args.kept. workspace: as base/cuda/device.h says.
Status sparse_mlp_cuda(const SparseMlpArgs& args, void* workspace, int64_t workspace_bytes,
                       const CudaDevice& device, void* stream);

}  // namespace tamis
