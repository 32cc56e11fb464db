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
  const char* name;  // prefill_attention_<dtype>_d<d>_q<queries>_<level>
  DType dtype;       // of q, keys and values
  int32_t head_dim;
  int32_t queries;     // of a block
  int32_t capability;  // 90: by warpgroups of that device; else the first that runs it
};

std::span<const PrefillCudaRow> prefill_cuda_kernels();

// The row for a call. On sm_90 by warpgroups where there is no softcap, but not for blocks of up to
// 64 tokens of which no two heads share keys, values and pattern: 64 queries for short whole
// prompts, 192 a block for many queries of 64 channels without blocks, else 128. On others 128, or
// 64 where blocks of the pattern are no larger. Null if none fits.
const PrefillCudaRow* choose_prefill_cuda(const PrefillArgs& args, const CudaDevice& device);

// What a call must be, as far as the host can see: nothing on the device is read, so lists are not
// refused; kernels read the nearest number there is. Blocks together with rows or columns have no
// kernel, nor has a scale of 0 or less, nor have rows of q, keys, values or out that do not start
// on 16 bytes.
Status check_prefill_cuda(const PrefillArgs& args);

// Bytes of memory that make a call faster: where warpgroups take many listed tokens, keys and
// values of those are packed there first. 0: it has no use for any. Pure.
int64_t prefill_workspace_cuda(const PrefillArgs& args, const CudaDevice& device);

// Checks and launches; everything that args points to lies on the device. Does not wait and
// allocates nothing.
Status prefill_attention_cuda(const PrefillArgs& args, const CudaDevice& device, void* stream);

// The same by warpgroups: a call that has been checked and has such a row.
Status prefill_attention_sm90(const PrefillArgs& args, const CudaDevice& device, void* stream);

}  // namespace tamis
