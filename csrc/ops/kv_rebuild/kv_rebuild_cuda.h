// kv_rebuild: listed tokens of a low-rank segment (sparse_attention.h) as dense keys and values, on
// CUDA: what its decode attention then reads as rows. Host side only. Nothing on the device is read
// by the host, so lists are not checked: the nearest token is taken. No call waits or allocates.
#pragma once

#include <span>

#include "base/cuda/device.h"
#include "base/status.h"
#include "ops/sparse_attention/sparse_attention.h"

namespace tamis {

// segment: of low rank, with a list; its counts, spans and bias are not looked at. keys, values:
// [b, g, segment.index_stride, d] of the segment's elements, contiguous.
struct KvRebuildArgs {
  int64_t batch = 0, kv_heads = 0, head_dim = 0;
  KvSegment segment = {};
  void *keys = nullptr, *values = nullptr;
};

// One line of kernels_cuda.def.
struct RebuildCudaRow {
  const char* name;  // kv_rebuild_<dtype>_d<d>_sm80up
  DType dtype;
  int32_t head_dim;
};

std::span<const RebuildCudaRow> rebuild_cuda_kernels();

// The row that fits; null if none.
const RebuildCudaRow* choose_rebuild_cuda(KvStorage storage, int64_t head_dim);

Status kv_rebuild_cuda(const KvRebuildArgs& args, const CudaDevice& device, void* stream);

// What that call accepts.
Status check_rebuild_cuda(const KvRebuildArgs& args);

// In double, keys before they are rounded; lists are read here. keys, values: f64.
Status kv_rebuild_reference(const KvRebuildArgs& args, double* keys, double* values);

}  // namespace tamis
