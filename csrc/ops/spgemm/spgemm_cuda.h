// spgemm on CUDA: the same formula over memory of a device, in two calls, between which the caller
// adds up the counts and makes room. Host side only; nothing here needs the CUDA toolkit.
#pragma once

#include <cstdint>
#include <span>

#include "base/cuda/device.h"
#include "base/status.h"
#include "ops/spgemm/spgemm.h"

namespace tamis {

// One line of kernels_cuda.def.
struct SpgemmCudaRow {
  const char* name;  // spgemm_csr_<dtype>_sm80up
  DType dtype;
};

std::span<const SpgemmCudaRow> spgemm_cuda_kernels();

// Bytes of workspace for either call; pure. Fails as the calls would.
Status spgemm_workspace(const SpgemmArgs& args, const CudaDevice& device, int64_t* bytes);

// Check and launch; everything that they point to lies on the device. Do not wait, allocate
// nothing. counts [m]: how many values each row will store. row_offsets [m + 1]: their sums, from 0
// on. workspace: as base/cuda/device.h says.
Status spgemm_count_cuda(const SpgemmArgs& args, int64_t* counts, void* workspace,
                         int64_t workspace_bytes, const CudaDevice& device, void* stream);
Status spgemm_fill_cuda(const SpgemmArgs& args, const int64_t* row_offsets, int32_t* col_indices,
                        float* values, void* workspace, int64_t workspace_bytes,
                        const CudaDevice& device, void* stream);

}  // namespace tamis
