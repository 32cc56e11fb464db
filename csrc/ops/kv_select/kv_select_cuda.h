// kv_select on CUDA: estimates of labels, bounds and rows, exact selection, labels of new tokens.
// Host side only. Everything that the arguments point to lies on the device; nothing there is read
// by the host. Selection gives the same lists as the CPU's from the same scores; labels are the
// same bytes. No call waits or allocates.
#pragma once

#include <span>

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

// Both in one call; select.scores is not read, its heads and units are the estimate's. By head in
// one launch, for at most 131072 labels of 32 channels and 4 rows a KV head on sm_90, or 81920 and
// 8 rows, records at multiples of 16 bytes: scores reach memory only where estimate.out is not
// null. (Rows and bounds, a warp a unit, take longer in the few blocks of a cluster.) By row in
// two: the scores of every row, and the union of what each chooses.
bool kv_choose_fits(const KvChooseArgs& args, const CudaDevice& device);
int64_t choose_workspace(const KvChooseArgs& args);  // bytes
Status kv_choose_cuda(const KvChooseArgs& args, void* workspace, int64_t workspace_bytes,
                      const CudaDevice& device, void* stream);
Status kv_choose_heads_cuda(const KvChooseArgs& args, const CudaDevice& device, void* stream);

// One line of kernels_cuda.def.
struct MassCudaRow {
  const char* name;  // kv_mass_<dtype>_r<kept rows>_sm80up
  DType dtype;       // of q and keys; f32: any
  int32_t rows;      // that a block keeps
};

std::span<const MassCudaRow> mass_cuda_kernels();

// The row for one of a call's passes: 128 rows of q (or keys, in the second) a block where there
// are more than 64 and they take little memory.
const MassCudaRow* choose_mass_cuda(const KvMassArgs& args, bool columns);

// Logarithms of the rows' sums, and parts of them: bytes, after the tickets.
int64_t mass_workspace(const KvMassArgs& args, const CudaDevice& device);

// workspace: as many bytes, 16-byte aligned. Two calls give the same bits. Numbers that are not all
// of one 16-bit type are multiplied within 2^-15 of |q| |k|, for d up to 128. positions, on the
// device too, are not refused: the nearest token is taken.
Status kv_mass_cuda(const KvMassArgs& args, void* workspace, int64_t workspace_bytes,
                    const CudaDevice& device, void* stream);

Status kv_select_cuda(const KvSelectArgs& args, const CudaDevice& device, void* stream);

Status kv_append_labels_cuda(const KvAppendLabelsArgs& args, const CudaDevice& device,
                             void* stream);

// What those calls accept beside what their kernels look after themselves.
Status check_estimate_cuda(const KvEstimateArgs& args);
Status check_select_cuda(const KvSelectArgs& args);
Status check_choose_cuda(const KvChooseArgs& args);
Status check_mass_cuda(const KvMassArgs& args);
Status check_append_labels_cuda(const KvAppendLabelsArgs& args);

}  // namespace tamis
