// spmm_grad on CUDA, for masks (bitmap and nm): cuBLAS multiplies, round it w is written out or its
// gradient gathered. Host side only; nothing here needs the CUDA toolkit.
#pragma once

#include <cstdint>
#include <span>

#include "base/cuda/device.h"
#include "base/status.h"
#include "format/format.h"

namespace tamis {

// One line of kernels_cuda.def.
struct SpmmGradCudaRow {
  const char* name;  // spmm_grad_<dtype>_sm80up
  DType dtype;       // of w and the dense
};

std::span<const SpmmGradCudaRow> spmm_grad_cuda_kernels();

// w as dense [n, k], and values [nnz] where a dense has them. Check and launch; everything that is
// pointed to lies on the device. Do not wait, allocate nothing. Fail for another format or dtype, n
// or k no multiple of 8, a dense off 16 bytes, more than 2^32 values.
Status unpack_mask_cuda(const MatrixView& w, void* dense, void* stream);
Status gather_mask_cuda(const MatrixView& w, const void* dense, void* values, void* stream);

}  // namespace tamis
