// spmm_grad on CUDA: the same formulas over memory of a device, for masks (bitmap and nm). Host
// side only; nothing here needs the CUDA toolkit.
#pragma once

#include <cstdint>
#include <span>

#include "base/cuda/device.h"
#include "base/status.h"
#include "ops/spmm_grad/spmm_grad.h"

namespace tamis {

// One line of kernels_cuda.def.
struct SpmmGradCudaRow {
  const char* name;  // spmm_grad_<dtype>_sm80up
  DType dtype;       // of w, dy, x, dx and dw
};

std::span<const SpmmGradCudaRow> spmm_grad_cuda_kernels();

// Bytes of workspace for a call; pure. Fail as the call would: another format or dtype, n or k no
// multiple of 8, arrays or strides off 16 bytes, more than 2^32 values.
Status spmm_t_workspace(const SpmmTArgs& args, const CudaDevice& device, int64_t* bytes);
Status sddmm_workspace(const SddmmArgs& args, const CudaDevice& device, int64_t* bytes);

// Check and launch; everything that args points to lies on the device. Do not wait, allocate
// nothing. workspace: as base/cuda/device.h says.
Status spmm_t_cuda(const SpmmTArgs& args, void* workspace, int64_t workspace_bytes,
                   const CudaDevice& device, void* stream);
Status sddmm_cuda(const SddmmArgs& args, void* workspace, int64_t workspace_bytes,
                  const CudaDevice& device, void* stream);

// For the products that cuBLAS is faster at: w as dense [n, k], and values [nnz] where a dense has
// them; these need no workspace.
Status unpack_mask_cuda(const MatrixView& w, void* dense, void* stream);
Status gather_mask_cuda(const MatrixView& w, const void* dense, void* values, void* stream);

}  // namespace tamis
