// kv_edit on CUDA. Host side only. Everything that the arguments point to lies on the device;
// nothing there is read by the host, so lists are not checked: the nearest token is taken. No call
// waits or allocates, and two calls give the same bits.
#pragma once

#include <span>

#include "base/cuda/device.h"
#include "base/status.h"
#include "ops/kv_edit/kv_edit.h"

namespace tamis {

// One line of kernels_cuda.def.
struct MergeCudaRow {
  const char* name;  // kv_merge_<dtype>_sm80up
  DType dtype;       // of keys and values
};

std::span<const MergeCudaRow> merge_cuda_kernels();

// The row for a dtype; null if none.
const MergeCudaRow* choose_merge_cuda(DType dtype);

// Lengths of the listed keys and values, and who joined whom if the caller does not ask: bytes,
// after the tickets.
int64_t merge_workspace(const KvMergeArgs& args);

// workspace: as many bytes, 16-byte aligned. Similarities are those of the numbers as stored, f32
// ones within 2^-15; f32 takes d up to 128.
Status kv_merge_cuda(const KvMergeArgs& args, void* workspace, int64_t workspace_bytes,
                     const CudaDevice& device, void* stream);

Status kv_gather_cuda(const KvGatherArgs& args, const CudaDevice& device, void* stream);

// What those calls accept beside what their kernels look after themselves.
Status check_merge_cuda(const KvMergeArgs& args, const CudaDevice& device);
Status check_gather_cuda(const KvGatherArgs& args);

}  // namespace tamis
