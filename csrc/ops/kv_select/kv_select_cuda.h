// kv_select on CUDA: estimates of labels, bounds and rows, exact selection, labels of new tokens.
// Host side only. Everything that the arguments point to lies on the device; nothing there is read
// by the host. Selection gives the same lists as the CPU's from the same scores; labels are the
// same bytes. No call waits or allocates.
#pragma once

#include "base/cuda/device.h"
#include "base/status.h"
#include "ops/kv_select/kv_select.h"

namespace tamis {

inline constexpr int32_t kEstimateThreads = 256;
inline constexpr int32_t kEstimateRows = 8;  // query rows of a KV head at most
inline constexpr int32_t kSelectThreads = 1024;
inline constexpr int64_t kSelectUnits = 2000000;  // at most

// Scores that the workspace holds between the passes of an estimate: bytes, after the tickets.
int64_t estimate_workspace(const KvEstimateArgs& args);

// workspace: as many bytes, 16-byte aligned.
Status kv_estimate_cuda(const KvEstimateArgs& args, void* workspace, int64_t workspace_bytes,
                        const CudaDevice& device, void* stream);

// Both in one launch, for at most 32768 labels of 32 channels and 4 rows a KV head on sm_90: lists
// the best units by scores that reach memory only where estimate.out is not null. (Rows and bounds,
// a warp a unit, take longer in the few blocks of a cluster.) select.scores is not read; its heads
// and units are the estimate's.
bool kv_choose_fits(const KvEstimateArgs& estimate, const CudaDevice& device);
Status kv_choose_cuda(const KvEstimateArgs& estimate, const KvSelectArgs& select,
                      const CudaDevice& device, void* stream);

// Not by top_p.
Status kv_select_cuda(const KvSelectArgs& args, const CudaDevice& device, void* stream);

Status kv_append_labels_cuda(const KvAppendLabelsArgs& args, const CudaDevice& device,
                             void* stream);

// What those calls accept beside what their kernels look after themselves.
Status check_estimate_cuda(const KvEstimateArgs& args);
Status check_select_cuda(const KvSelectArgs& args);
Status check_choose_cuda(const KvEstimateArgs& estimate, const KvSelectArgs& select);
Status check_append_labels_cuda(const KvAppendLabelsArgs& args);

}  // namespace tamis
