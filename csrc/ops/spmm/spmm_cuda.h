// spmm on CUDA: the same formula over packed weights, as rows of kernels_cuda.def. Host side only;
// nothing here needs the CUDA toolkit.
#pragma once

#include <cstdint>
#include <span>

#include "base/cuda/device.h"
#include "base/dtype.h"
#include "base/status.h"
#include "format/t16.h"

namespace tamis {

// x, bias and y have w's dtype and lie on the device, as everything does that w points to. y must
// not overlap x. Strides in elements.
struct SpmmCudaArgs {
  PackedView w;
  int64_t m = 0;  // 1 to most_tokens_cuda
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* bias = nullptr;  // [n] or null
  void* y = nullptr;
  int64_t y_stride = 0;
  // As many bytes as the plan says, 16-byte aligned, zero before the first call. Calls of all
  // shapes may take turns with one; calls that can overlap, as those on two streams, need one each.
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
};

// Whether rows of x, or rows of any 16-bit matrix, start at multiples of 16 bytes.
inline bool rows_aligned(const void* matrix, int64_t rows, int64_t stride) {
  return reinterpret_cast<uintptr_t>(matrix) % 16 == 0 && (rows == 1 || stride % 8 == 0);
}

inline constexpr int64_t kMaxTokens = 64;

// Tokens that one call takes where shared memory holds them: 4 of gap, 8 of sell4, 128 of r24, any
// of bitmap, but 16 in 32 bits, 65536 where warpgroups do the work (m24 on sm_90, but for small
// weights), kMaxTokens of the others.
int64_t most_tokens_cuda(const PackedView& w, const CudaDevice& device);

// How one call is laid out over the device; see plan_spmm_cuda. gap, sell4: slices are the row
// tiles, and splits of sell4 the blocks of one, a cluster; p24: panels are the splits.
struct SpmmCudaPlan {
  int32_t layout = -1;       // of m24_layouts.def, bitmap_ or r24_layouts.def; -1: other kernels
  int32_t many_layout = -1;  // of m24_many_layouts.def; splits are then a cluster
  int32_t tokens = 0;        // most that a call may have
  int32_t token_tiles = 0;   // products of 8 tokens per A fragment: 1, 2, 4 or 8; gap, sell4: none
  int32_t warps_n = 0, warps_k = 0;  // of a block: over row tiles, and over its part of k
  int32_t block_warps = 0;           // p24: all of a block, some of which may only copy x
  int32_t first_cols = 0;            // p24: that are copied before; 0: all of a panel
  int32_t blocks_n = 0;              // over row tiles
  int32_t splits = 0;                // blocks over k; each leaves a partial sum if more than one
  bool cluster = false;              // p24, r24: or these are a cluster and leave nothing
  int32_t x_pitch_bytes = 0;         // between token rows of x in shared memory
  int32_t stage_bytes = 0;           // one record of the ring
  int32_t warp_sums_at = 0;          // p24: what a block's warps add up
  int64_t shared_bytes = 0;          // of a block
  int64_t workspace_bytes = 0;
};

// What plans of gap and sell4 say where a block cannot hold x.
Status columns_do_not_fit(const PackedView& w, int32_t tokens, const CudaDevice& device);

// Pure: which kernel and layout is expected to take least time. Fails when none fits the device,
// and for more tokens than most_tokens_cuda.
Status plan_spmm_cuda(const PackedView& w, int64_t m, const CudaDevice& device, SpmmCudaPlan* plan);

// The same among the layouts of one kernel.
Status plan_spmm_t16(const PackedView& w, int64_t m, const CudaDevice& device, SpmmCudaPlan* plan);
Status plan_spmm_sell4(const PackedView& w, int64_t m, const CudaDevice& device,
                       SpmmCudaPlan* plan);
Status plan_spmm_p24(const PackedView& w, int64_t m, const CudaDevice& device, SpmmCudaPlan* plan);
Status plan_spmm_r24(const PackedView& w, int64_t m, const CudaDevice& device, SpmmCudaPlan* plan);
Status plan_spmm_gap(const PackedView& w, int64_t m, const CudaDevice& device, SpmmCudaPlan* plan);
Status plan_spmm_bitmap_f32(const PackedView& w, int64_t m, const CudaDevice& device,
                            SpmmCudaPlan* plan);

// Launches one row's kernel on a stream (cudaStream_t).
using SpmmCudaKernel = Status (*)(const SpmmCudaArgs&, const SpmmCudaPlan&, const CudaDevice&,
                                  void* stream);

// One line of kernels_cuda.def.
struct SpmmCudaRow {
  const char* name;  // spmm_<format>_<w dtype>_<x dtype>_sm<capability>
  PackedFormat format;
  DType w_dtype, x_dtype;
  int32_t capability;  // least that runs it
  bool exact;          // machine code for that capability alone, without PTX for later ones
  SpmmCudaKernel run;
};

std::span<const SpmmCudaRow> spmm_cuda_kernels();

// First row that fits, by the dtype of x; null if none.
const SpmmCudaRow* choose_spmm_cuda(PackedFormat format, DType dtype, int32_t capability);

// Checks the arguments and launches as planned for this m and device, which is current. Does not
// wait and allocates nothing.
Status spmm_cuda(const SpmmCudaArgs& args, const SpmmCudaPlan& plan, const CudaDevice& device,
                 void* stream);

// Writes w densely, out [rows, cols], on the device, which is current. Not bitmap in 16 bits, of
// which unpack_mask_cuda does so; faster than gap and p24 are written out.
Status expand_cuda(const PackedView& w, void* out, int64_t out_stride, const CudaDevice& device,
                   void* stream);
Status expand_bitmap_f32_cuda(const PackedView& w, void* out, int64_t out_stride,
                              const CudaDevice& device, void* stream);
Status expand_gap_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream);
Status expand_p24_cuda(const PackedView& w, void* out, int64_t out_stride, const CudaDevice& device,
                       void* stream);
Status expand_r24_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream);
Status expand_t16_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream);
Status expand_g4_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream);
Status expand_sell4_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream);
Status expand_t16i8_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream);
Status expand_m24i4_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream);
Status expand_m24i8_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream);
Status expand_m24_cuda(const PackedView& w, void* out, int64_t out_stride, void* stream);

}  // namespace tamis
