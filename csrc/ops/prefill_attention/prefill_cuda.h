// prefill_attention on CUDA: the same formula over memory of a device, one launch. Host side only;
// nothing here needs the CUDA toolkit.
#pragma once

#include <cstdint>
#include <span>

#include "base/cuda/device.h"
#include "base/status.h"
#include "ops/prefill_attention/prefill_attention.h"

namespace tamis {

// One line of kernels_cuda.def.
struct PrefillCudaRow {
  const char* name;  // prefill_attention_<dtype>_d<d>_q<queries>_sm80up
  DType dtype;       // of q, keys and values
  int32_t head_dim;
  int32_t queries;  // of a block
};

std::span<const PrefillCudaRow> prefill_cuda_kernels();

// The row for a call: 128 queries a block, or 64 where blocks of the pattern are no larger. Null if
// none fits.
const PrefillCudaRow* choose_prefill_cuda(const PrefillArgs& args);

// What a call must be, as far as the host can see: nothing on the device is read, so lists are not
// refused; kernels read the nearest number there is. Blocks together with rows or columns have no
// kernel, nor has a scale of 0 or less, nor have rows of q, keys or values that do not start on 16
// bytes.
Status check_prefill_cuda(const PrefillArgs& args);

// Checks and launches; everything that args points to lies on the device. Does not wait and
// allocates nothing.
Status prefill_attention_cuda(const PrefillArgs& args, const CudaDevice& device, void* stream);

}  // namespace tamis
