// sparse_attention on CUDA: the same formula over memory of a device, one launch a segment, as rows
// of kernels_cuda.def. Host side only; nothing here needs the CUDA toolkit.
#pragma once

#include <cstdint>
#include <span>

#include "base/cuda/device.h"
#include "base/status.h"
#include "ops/kv_select/kv_select_cuda.h"
#include "ops/sparse_attention/sparse_attention.h"

namespace tamis {

// Everything that `attention` points to lies on the device. Nothing there is read by the host, so
// indices beyond their segment are not refused: the kernels read the nearest unit there is.
struct SparseAttentionCudaArgs {
  SparseAttentionArgs attention;
  // As many bytes as attention_workspace says, 16-byte aligned, its first kWorkspaceTicketBytes
  // zero before the first call. Calls that can overlap, as those on two streams, need one each.
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
};

// How one segment is laid out: blocks over its tokens for each batch, KV head and 8 query rows.
struct AttentionPlan {
  int32_t segment = 0;
  int32_t splits = 0;
  int32_t first_split = 0;   // those of the launches before
  int32_t shared_bytes = 0;  // of a block; no more blocks than planned share an SM
  bool cluster = false;      // the blocks of a head add up through shared memory (sm_90)
  int32_t tail = -1;         // a segment that this launch reads as well
  int32_t tail_at = 0;       // where tiles of it lie in shared memory
};

// One line of kernels_cuda.def.
struct AttentionCudaRow {
  const char* name;  // sparse_attention_<storage>_<d>_sm80up
  KvStorage storage;
  int32_t bits;      // of pages, keys and values alike
  int32_t head_dim;  // d
  int32_t unit;      // tokens that a warp takes at a time: a page
  int32_t group;     // of pages: channels that share a value scale
  int32_t shared_bytes;
};

std::span<const AttentionCudaRow> attention_cuda_kernels();

// First row that fits the segment and d; null if none.
const AttentionCudaRow* choose_attention_cuda(const KvSegment& segment, int64_t head_dim);

// Bytes of workspace for a call; pure. Fails as the call would.
Status attention_workspace(const SparseAttentionArgs& args, const CudaDevice& device,
                           int64_t* bytes);

// Checks the arguments and launches. Does not wait and allocates nothing.
Status sparse_attention_cuda(const SparseAttentionCudaArgs& args, const CudaDevice& device,
                             void* stream);

// kv_choose and attention to what it lists, in one launch: as soon as tokens are known to be among
// the chosen ones, the blocks that chose them read them. The segment says nothing of which tokens
// count; lists are not written.
struct ChosenAttentionArgs {
  KvChooseArgs choose;
  SparseAttentionArgs attention;  // of as many heads and rows
  // The last token has no label yet, or one that may be written again: the launch writes it.
  bool new_label = false;
};

// Of labels that kv_choose takes by head in one launch, and one dense segment of d = 64 or 128 in
// q's 16-bit type whose rows start at multiples of 16 bytes. Pure.
bool chosen_attention_fits(const ChosenAttentionArgs& args, const CudaDevice& device);
Status chosen_attention_cuda(const ChosenAttentionArgs& args, const CudaDevice& device,
                             void* stream);

}  // namespace tamis
